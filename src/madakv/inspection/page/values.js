// Numbers per prompt token, for the layer, head and side that are chosen.

// Which entries stay: a bit per layer, head and token.
class Kept {
  constructor(bits, [layers, heads, tokens]) {
    Object.assign(this, { bits, layers, heads, tokens, row: Math.ceil(tokens / 8), made: new Map() });
  }

  has(layer, head, token) {
    return (this.bits[(layer * this.heads + head) * this.row + (token >> 3)] >> (token & 7)) & 1;
  }

  // How many of the chosen heads keep each token. -1 stands for all layers, or all heads.
  counts(layer, head) {
    const key = `${layer} ${head}`;
    if (!this.made.has(key)) {
      if (this.made.size > 100) this.made.clear();
      this.made.set(key, this.count(layer, head));
    }
    return this.made.get(key);
  }

  count(layer, head) {
    const counts = new Uint16Array(this.row * 8);
    for (const [l, h] of pairs(this, layer, head)) {
      const start = (l * this.heads + h) * this.row;
      for (let i = 0; i < this.row; i++) {
        for (let byte = this.bits[start + i]; byte; byte &= byte - 1) counts[i * 8 + 31 - Math.clz32(byte & -byte)]++;
      }
    }
    return counts.subarray(0, this.tokens);
  }

  positions(layer, head) {
    const found = [];
    for (let token = 0; token < this.tokens; token++) if (this.has(layer, head, token)) found.push(token);
    return found;
  }

  // Entries per layer and head, [layers * heads].
  totals() {
    return (this.sums ??= Array.from({ length: this.layers * this.heads }, (_, i) => {
      let sum = 0;
      for (let j = i * this.row; j < (i + 1) * this.row; j++) {
        for (let byte = this.bits[j]; byte; byte &= byte - 1) sum++;
      }
      return sum;
    }));
  }

  and(other) {
    return new Kept(this.bits.map((byte, i) => byte & other.bits[i]), [this.layers, this.heads, this.tokens]);
  }
}

// What tokens of the answer attended to.
class Looked {
  constructor(stored, [mean, best, weight, answer], kept) {
    Object.assign(this, { of: stored.of, prompt: stored.prompt, largest: stored.largest, mean, best, weight, answer, kept });
    this.k = stored.best.shape[3];
    // Steps 1 to 255 go up to the largest share in one ratio: a hundred-thousandth in all.
    this.steps = Float32Array.from({ length: 256 }, (_, i) => i && Math.pow(1e-5, (255 - i) / 254));
  }

  // Share of attention per prompt token, [tokens].
  shares(row, layer, head) {
    const { tokens, layers, heads } = this.kept;
    const shares = new Float32Array(tokens);
    if (layer < 0 && head < 0) {
      for (let n = 0; n < tokens; n++) shares[n] = this.steps[this.mean[row * tokens + n]] * this.largest[row];
      return shares;
    }
    const chosen = pairs(this.kept, layer, head);
    for (const [l, h] of chosen) {
      const start = ((row * layers + l) * heads + h) * this.k;
      for (let i = start; i < start + this.k; i++) {
        if (this.best[i] >= 0) shares[this.best[i]] += this.weight[i] / 65535 / chosen.length;
      }
    }
    return shares;
  }

  // The mean of shares(row) over all rows.
  meanOfAll() {
    const { tokens } = this.kept;
    const shares = new Float32Array(tokens);
    this.of.forEach((_, row) => {
      const part = this.largest[row] / this.of.length;
      for (let n = 0; n < tokens; n++) shares[n] += this.steps[this.mean[row * tokens + n]] * part;
    });
    return shares;
  }

  // Share of attention that went to tokens of the answer.
  own(row, layer, head) {
    const { layers, heads } = this.kept;
    const chosen = pairs(this.kept, layer, head);
    return chosen.reduce((sum, [l, h]) => sum + this.answer[(row * layers + l) * heads + h], 0) / 65535 / chosen.length;
  }

  plain() {
    const { tokens, layers, heads } = this.kept;
    return this.of.map((token, row) => {
      const mean = this.shares(row, -1, -1);
      const there = Array.from(mean.keys()).filter((n) => mean[n] > 0);
      const per = layers * heads;
      const cut = (values, width, scale) => Array.from({ length: layers }, (_, l) => Array.from({ length: heads }, (_, h) =>
        Array.from(values.subarray((row * per + l * heads + h) * width, (row * per + l * heads + h + 1) * width), (v) => v / scale)));
      return {
        token, prompt: this.prompt[row], mean: { positions: there, shares: there.map((n) => mean[n]) },
        best: cut(this.best, this.k, 1), weight: cut(this.weight, this.k, 65535),
        answer: cut(this.answer, 1, 65535).map((row) => row.flat()),
      };
    });
  }
}

function pairs({ layers, heads }, layer, head) {
  const found = [];
  for (let l = layer < 0 ? 0 : layer; l < (layer < 0 ? layers : layer + 1); l++) {
    for (let h = head < 0 ? 0 : head; h < (head < 0 ? heads : head + 1); h++) found.push([l, h]);
  }
  return found;
}

// What text and patches are shaded by: shares in -1 to 1, and the ramp to paint them with; which tokens are gone; how much
// of a patch is seen besides; and what it all means in words.
function measure(data, { side, layer, head, chosen }) {
  const { kept } = data.sides[Math.min(side, data.sides.length - 1)];
  const of = pairs(kept, layer, head).length;
  if (chosen) {
    const own = data.sides[chosen.side];
    const share = own.looked.shares(chosen.row, layer, head);
    const counts = own.kept.counts(layer, head);
    const partial = layer >= 0 || head >= 0;
    // Models park attention at the first token: beside that, nothing else would be seen.
    const most = largest(share.subarray(1)) || largest(share);
    return {
      ramp: "look", share, most, gone: (n) => !counts[n], under: (n) => (counts[n] ? 0.25 : 0),
      tell: (n) => counts[n] === 0 ? "dropped here: nothing to attend to"
        : share[n] > 0 ? `${percent(share[n])} of this pass' attention`
          : partial ? "not among what these heads attended to most" : "too little attention to tell",
    };
  }
  if (side === 2) {
    data.both ??= data.sides[0].kept.and(data.sides[1].kept);
    const [a, b, both] = [data.sides[0].kept, data.sides[1].kept, data.both].map((each) => each.counts(layer, head));
    const share = shares(b, (count, n) => (count - a[n]) / of);
    const [A, B] = sideNames(data);
    return {
      ramp: "diff", share, most: largest(share), gone: (n) => !a[n] && !b[n],
      under: (n) => strength("a", (a[n] + b[n] - both[n]) / of),
      tell: (n) => of === 1
        ? (both[n] ? "kept by both" : a[n] ? `kept by ${A} alone` : b[n] ? `kept by ${B} alone` : "dropped by both")
        : `${A} alone: ${a[n] - both[n]}, ${B} alone: ${b[n] - both[n]}, both: ${both[n]} of ${of} heads`,
    };
  }
  const counts = kept.counts(layer, head);
  const share = shares(counts, (count) => count / of);
  return {
    ramp: "ab"[side], share, most: largest(share), gone: (n) => !counts[n], under: () => 0,
    tell: (n) => of === 1 ? (counts[n] ? "kept" : "dropped") : `kept by ${counts[n]} of ${of} heads`,
  };
}

// As Float32Array.from, which is slow where there are many.
function shares(counts, make) {
  const made = new Float32Array(counts.length);
  for (let n = 0; n < made.length; n++) made[n] = make(counts[n], n);
  return made;
}

function largest(share) {
  let most = 0;
  for (let n = 0; n < share.length; n++) most = Math.max(most, Math.abs(share[n]));
  return most;
}

function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.01) return "under 0.01 %";
  // Only all is 100 %.
  if (value >= 99.5 && value < 100) return value < 99.95 ? `${value.toFixed(1)} %` : "over 99.9 %";
  return `${value >= 10 || value === 0 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toPrecision(1)} %`;
}

// Labels of two sides; where these are the same, budgets tell them apart, or else their order.
function sideNames(data) {
  const names = data.sides.map((side) => visible(side.label));
  if (names[0] !== names[1]) return names;
  const longer = data.sides.map((side) => `${visible(side.label)} ${budgetText(side)}`);
  return longer[0] === longer[1] ? longer.map((name, at) => `${name} (${["first", "second"][at]})`) : longer;
}

function budgetText({ budget, of_all: ofAll }) {
  return !ofAll ? `${budget.toLocaleString("en")} entries` : `${Number((100 * budget).toPrecision(3))} %`;
}

// Control characters, lone surrogates and marks of direction, which nobody sees or which move what stands beside them.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function visible(text) {
  return text.replace(UNSEEN, (mark) => {
    const code = mark.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}
