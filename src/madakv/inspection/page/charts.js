// Where the budget went: heat maps of heads and layers, bars and lines of layers.

class Charts {
  constructor(data, host, choose) {
    Object.assign(this, { data, host, choose, state: { side: 0, layer: -1, head: -1 } });
    const { layers, heads } = data.sides[0].kept;
    Object.assign(this, { layers, heads, all: [] });
    this.two = data.sides.length === 2;
    this.preference();
    this.counts();
    this.shares();
    this.stays();
  }

  layerName(layer) { return `layer ${this.data.sides[0].layers[layer]}`; }

  paint(state) {
    this.state = state;
    for (const figure of this.all) {
      figure.before?.();
      figure.field.draw();
    }
  }

  // One figure: title, line below it, plot with axes. `top` and `side` are labels of the upright axis.
  figure({ title, note, rows, boxes, label, paint, tell, before, pick, ends }) {
    const box = this.host.appendChild(make("section", "figure"));
    box.append(make("h3", "", title));
    const line = box.appendChild(make("p", "muted", note));
    const plot = box.appendChild(make("div", "plot"));
    const upright = plot.appendChild(make("div", "upright"));
    upright.append(...ends.map((end) => make("span", "", end)));
    const field = new Field({ label, boxes, paint, tell, pick });
    field.root.style.height = `${rows ? Math.min(320, Math.max(84, rows * 22)) : 168}px`;
    plot.append(field.root);
    const below = plot.appendChild(make("div", "below"));
    const names = this.data.sides[0].layers;
    below.append(...ticks(this.layers).map((tick) => {
      const mark = make("span", "", String(names[tick]));
      mark.style.left = `${(100 * (tick + 0.5)) / this.layers}%`;
      return mark;
    }));
    plot.append(make("div", "axis", "layer"));
    const figure = { field, line, upright, legend: box.appendChild(make("div", "legend")), before };
    this.all.push(figure);
    return figure;
  }

  missing(text) {
    this.host.after(make("p", "muted missing", text));
  }

  heatMap({ title, note, ramp, value, tell, before }) {
    const { layers, heads } = this;
    const cell = (i) => [i % layers, Math.floor(i / layers)];
    return this.figure({
      title, note, before, rows: heads, boxes: gridBoxes(layers, heads), label: title,
      ends: heads > 1 ? ["head 0", `head ${heads - 1}`] : ["head 0"],
      pick: (i) => this.choose(...cell(i)),
      tell: (i) => `${this.layerName(cell(i)[0])}, head ${cell(i)[1]}\n${tell(...cell(i))}`,
      paint: (context, width, height) => {
        const gap = width / layers > 8 ? 1 : 0;
        for (let i = 0; i < layers * heads; i++) {
          const [layer, head] = cell(i);
          const share = value(layer, head);
          if (!Number.isFinite(share)) continue;
          context.fillStyle = css(colour(ramp(), share));
          const [x, y] = [(layer * width) / layers, (head * height) / heads];
          context.fillRect(x, y, width / layers - gap, height / heads - gap);
        }
        this.mark(context, width, height, true);
      },
    });
  }

  // A frame around the layer and the head that are chosen.
  mark(context, width, height, withHead) {
    const { layer, head } = this.state;
    if (layer < 0 && (head < 0 || !withHead)) return;
    const [x, w] = layer < 0 ? [0, width] : [(layer * width) / this.layers, width / this.layers];
    const [y, h] = head < 0 || !withHead ? [0, height] : [(head * height) / this.heads, height / this.heads];
    context.strokeStyle = tone("--ink");
    context.lineWidth = 1.5;
    context.strokeRect(x + 0.75, y + 0.75, Math.max(1, w - 1.5), Math.max(1, h - 1.5));
  }

  preference() {
    const { preference } = this.data;
    const title = "What heads prefer";
    const names = kindsOf(this.data);
    if (names.every((name) => name === "text")) return this.missing("The prompt is text alone: heads have nothing to prefer to it.");
    if (!preference) return this.missing("How the question's attention is split between modalities was not recorded.");
    const at = (layer, head) => preference.subarray((layer * this.heads + head) * 4, (layer * this.heads + head + 1) * 4);
    const seen = (layer, head) => 1 - at(layer, head)[0];
    const figure = this.heatMap({
      title, note: `How each head splits the question's attention to the prompt between ${names.join(" and ")}.`,
      ramp: () => "preference", value: (layer, head) => 2 * seen(layer, head) - 1,
      tell: (layer, head) => Number.isFinite(seen(layer, head))
        ? names.map((name) => `${name} ${percent(at(layer, head)[KINDS.indexOf(name)])}`).join(" · ") : "not recorded",
    });
    const seeing = names.filter((name) => name !== "text").join(", ");
    figure.before = () => legend(figure.legend, "preference", ["all to text", "half", `all to ${seeing}`]);
    return figure;
  }

  counts() {
    const tokens = this.data.modality.reduce((sum, kind) => sum + (kind >= 0), 0);
    const kept = (side, layer, head) => this.data.sides[side].kept.totals()[layer * this.heads + head];
    const names = sideNames(this.data);
    const differ = (layer, head) => kept(1, layer, head) - kept(0, layer, head);
    const most = (value) => Math.max(1, ...Array.from({ length: this.layers * this.heads }, (_, i) =>
      Math.abs(value(i % this.layers, Math.floor(i / this.layers)))));
    const now = () => (this.state.side === 2 ? differ : (layer, head) => kept(this.state.side, layer, head));
    let top = 1;
    const figure = this.heatMap({
      title: "What heads kept", note: "",
      ramp: () => ["a", "b", "diff"][this.state.side],
      value: (layer, head) => now()(layer, head) / top,
      tell: (layer, head) => names.map((name, side) =>
        `${this.two ? `${name}: ` : ""}${count(kept(side, layer, head))} of ${count(tokens)} entries`).join("\n"),
      before: () => {
        top = most(now());
        figure.line.textContent = this.state.side === 2
          ? `Entries per head: how many more ${names[0]} keeps (blue), or ${names[1]} (orange).`
          : `Entries that each head keeps${this.two ? `, ${names[this.state.side]}` : ""}.`;
        if (this.state.side === 2) legend(figure.legend, "diff", [`${count(top)} more in ${names[0]}`, "", `${count(top)} more in ${names[1]}`]);
        else legend(figure.legend, figure.ramp(), ["0", "", `${count(top)} entries`]);
      },
    });
    figure.ramp = () => ["a", "b"][this.state.side];
  }

  sides() { return this.state.side === 2 ? [0, 1] : [this.state.side]; }

  // Per layer: what heads were given when the layer was decided, and what they have now.
  shares() {
    const { layers, heads, data } = this;
    const perLayer = (values) => Array.from({ length: layers }, (_, layer) =>
      Array.from({ length: heads }, (_, head) => values[layer * heads + head]).reduce((sum, value) => sum + value, 0));
    const got = data.sides.map((side) => perLayer(side.kept.totals()));
    const asked = data.sides.map((side) => side.asked && perLayer(side.asked));
    const even = got.map((values) => values.reduce((sum, value) => sum + value, 0) / layers);
    const names = sideNames(data);
    const top = Math.max(1, ...got.flat(), ...asked.flat().filter(Boolean));
    const figure = this.figure({
      title: "What layers asked for, and got", note: "", boxes: gridBoxes(layers, 1), label: "Entries per layer",
      ends: [count(top), "0"], pick: (layer) => this.choose(layer, -1),
      tell: (layer) => [this.layerName(layer), ...this.sides().map((side) =>
        `${this.two ? `${names[side]}: ` : ""}${asked[side] ? `asked ${count(asked[side][layer])}, ` : ""}got ${count(got[side][layer])} · even share ${count(Math.round(even[side]))}`)].join("\n"),
      before: () => {
        figure.line.textContent = this.sides().some((side) => !asked[side])
          ? "Entries per layer. What each asked for was not recorded. Dashed: the even share."
          : "Outlined: how many entries hold 90 % of what the question attends to. Filled: what each layer got. Dashed: the even share.";
      },
      paint: (context, width, height) => {
        const sides = this.sides();
        const slot = width / layers;
        const bar = (slot * 0.76) / sides.length;
        const y = (value) => height - (value / top) * (height - 4);
        sides.forEach((side, place) => {
          const hue = tone(side ? "--b" : "--a");
          for (let layer = 0; layer < layers; layer++) {
            const x = layer * slot + slot * 0.12 + place * bar;
            context.fillStyle = context.strokeStyle = hue;
            context.fillRect(x, y(got[side][layer]), Math.max(1, bar - 1), height - y(got[side][layer]));
            if (!asked[side]) continue;
            const from = y(asked[side][layer]);
            context.lineWidth = 1;
            context.globalAlpha = 0.22;
            context.fillRect(x, from, Math.max(1, bar - 1), Math.max(0, y(got[side][layer]) - from));
            context.globalAlpha = 1;
            context.strokeRect(x + 0.5, from + 0.5, Math.max(1, bar - 2), height - from);
          }
        });
        sides.forEach((side) => {
          context.strokeStyle = this.two ? tone(side ? "--b-ink" : "--a-ink") : tone("--ink");
          context.setLineDash([5, 4]);
          line(context, [[0, y(even[side])], [width, y(even[side])]]);
          context.setLineDash([]);
        });
        this.mark(context, width, height, false);
      },
    });
  }

  stays() {
    const { layers, heads, data } = this;
    const title = "Attention that stays";
    const means = data.sides.map((side) => side.stays && Array.from({ length: layers }, (_, layer) => {
      const own = Array.from(side.stays.subarray(layer * heads, (layer + 1) * heads)).filter(Number.isFinite);
      return own.length ? own.reduce((sum, value) => sum + value, 0) / own.length : NaN;
    }));
    if (!means.some(Boolean)) return this.missing("How much of the question's attention stays was not recorded.");
    const names = sideNames(data);
    const figure = this.figure({
      title, note: "Share of the question's attention to the prompt that goes to what stays, mean of heads.",
      boxes: gridBoxes(layers, 1), label: title, ends: ["100 %", "50 %", "0 %"], pick: (layer) => this.choose(layer, -1),
      tell: (layer) => [this.layerName(layer), ...means.map((mean, side) =>
        `${this.two ? `${names[side]}: ` : ""}${mean && Number.isFinite(mean[layer]) ? percent(mean[layer]) : "not recorded"}`)].join("\n"),
      paint: (context, width, height) => {
        context.strokeStyle = tone("--rule");
        context.lineWidth = 1;
        for (const share of [0, 0.25, 0.5, 0.75, 1]) {
          const at = 1 + (height - 2) * (1 - share);
          line(context, [[0, at], [width, at]]);
        }
        means.forEach((mean, side) => {
          if (!mean) return;
          const points = mean.map((value, layer) => [((layer + 0.5) * width) / layers, 2 + (height - 4) * (1 - value)]);
          context.strokeStyle = context.fillStyle = tone(side ? "--b" : "--a");
          context.lineWidth = 2;
          line(context, points.filter(([, y]) => Number.isFinite(y)));
          for (const [x, y] of points) {
            context.beginPath();
            // Shapes tell sides apart as well as colours.
            if (side) context.rect(x - 3, y - 3, 6, 6);
            else context.arc(x, y, 3.2, 0, 7);
            context.fill();
          }
        });
        this.mark(context, width, height, false);
      },
    });
    if (this.two) {
      figure.legend.replaceChildren(...names.map((name, side) => make("span", side ? "key b" : "key a", name)));
    }
  }
}

// Which layers an axis names: every one of a few, or every so many.
function ticks(layers) {
  const step = [1, 2, 5, 10, 20, 50].find((each) => layers <= 12 * each) ?? 100;
  return Array.from({ length: Math.ceil(layers / step) }, (_, i) => i * step);
}

function line(context, points) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

function tone(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

function count(value) {
  return value.toLocaleString("en");
}

// A ramp with what its ends, and its middle, stand for.
function legend(host, ramp, [low, middle, high], bent = false) {
  const bar = make("span", "ramp");
  bar.style.background = gradient(ramp, bent);
  const ends = make("span", "ends");
  ends.append(make("span", "", low), make("span", "", middle), make("span", "", high));
  host.replaceChildren(bar, ends);
}
