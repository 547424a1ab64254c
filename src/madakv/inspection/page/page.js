// The page: what is chosen, and everything that shows it.

const TAIL = 48; // tokens of the prompt's end that its head shows
const SENTENCE = 3; // fewer tokens are marks around a picture

const by = (id) => document.getElementById(id);

class Page {
  constructor(data) {
    this.data = data;
    this.two = data.sides.length === 2;
    this.state = { side: 0, layer: -1, head: -1, chosen: null };
    this.names = sideNames(data);
    this.theme();
    this.about();
    this.answers = data.sides.map((side, index) => this.side(side, index));
    this.controls();
    this.download();
    this.dialog();
    this.prompt = new Prompt(data, by("pane"), (index) => this.openPicture(index));
    this.charts = new Charts(data, by("figures"), (layer, head) => this.choose(layer, head));
    this.ribbon();
    this.paint();
  }

  // One repaint per frame, however fast a slider moves.
  change(changes) {
    Object.assign(this.state, changes);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.paint();
    });
  }

  paint() {
    const { state, data } = this;
    const now = (this.now = measure(data, state));
    this.labels();
    this.prompt.paint(now);
    this.ribbonField.draw();
    this.charts.paint(state);
    this.captions();
    if (this.shown >= 0) this.largePicture.paint(now);
  }

  about() {
    const { model, modality } = this.data;
    const kinds = kindsOf(this.data).map((kind) => [kind, modality.reduce((sum, each) => sum + (KINDS[each] === kind), 0)]);
    const total = kinds.reduce((sum, [, size]) => sum + size, 0);
    by("about").append(make("bdi", "model", visible(model)),
      ` · ${count(total)} prompt tokens: ${kinds.map(([kind, size]) => `${count(size)} ${kind}`).join(", ")}`);
    this.total = total;
    this.question = this.data.modality.findLastIndex((kind) => kind > 0) + 1;
    // Of text alone nobody knows where the question begins: the end that is shown here stands for it.
    const long = this.data.tokens.length > 2 * TAIL;
    this.end = this.question || this.data.tokens.length - (long ? TAIL : 0);
    const tail = visible(this.data.tokens.slice(this.question).slice(-TAIL).join("").replace(/\s+/g, " ").trim());
    const cut = this.data.tokens.length - this.question > TAIL;
    const line = by("about").parentNode.appendChild(make("p", "tail"));
    line.append(make("span", "muted", "The prompt ends: "), make("bdi", "", cut ? `… ${tail}` : tail));
    line.hidden = !tail;
  }

  // The card of a side: what it is, what it cost, what it answered.
  side(side, index) {
    const card = by("sides").appendChild(make("article", `card ${"ab"[index]}`));
    card.classList.toggle("only", !this.two);
    const entries = side.kept.totals().reduce((sum, value) => sum + value, 0);
    const { layers, heads } = side.kept;
    const head = card.appendChild(make("div", "what"));
    const title = head.appendChild(make("h2"));
    title.append(make("bdi", "", visible(side.label)), make("span", "muted", ` budget ${budgetText(side)}`));
    const figures = head.appendChild(make("p", "figures"));
    figures.append(make("strong", "", percent(entries / Math.max(1, this.total * layers * heads))),
      ` of entries kept · ${bytes(side.bytes)} of ${bytes(side.bytes_full)}${side.rows > 1 ? `, ${count(side.rows)} rows together` : ""}`);
    const method = head.appendChild(make("details", "method muted"));
    method.append(make("summary", "", "method in full"), make("p", "", visible(side.method)));
    const answer = card.appendChild(make("div", "answer"));
    answer.append(make("h3", "muted", "Answer"));
    const words = answer.appendChild(make("p", "words"));
    words.setAttribute("role", "group");
    words.setAttribute("aria-label", `answer of ${this.names[index]}, token by token`);
    words.dir = "auto";
    const part = this.two ? partsAt(this.data.sides) : -1;
    side.answer.forEach((piece, at) => {
      if (at === part) words.append(this.fork());
      const token = words.appendChild(make("span", "piece", visible(piece)));
      token.setAttribute("role", "button");
      token.setAttribute("aria-pressed", "false");
      token.tabIndex = at ? -1 : 0;
      token.at = at;
      token.classList.toggle("after", part >= 0 && at >= part);
      token.classList.toggle("unseen", !side.looked?.of.includes(at));
    });
    if (part >= side.answer.length) words.append(this.fork());
    if (!side.answer.length) words.append(make("span", "muted", "nothing"));
    const line = answer.appendChild(make("p", "hint muted", side.looked
      ? "Choose a token to see what it rested on."
      : side.recorded && side.answer.length === 0 ? "Nothing was said, and nothing looked at."
      : side.recorded && side.answer.length === 1 ? "Its only token comes from the prompt's own pass; what later ones look at would stand here."
        : "What the answer looked at was not recorded."));
    if (this.two && part < 0) line.append(" Both answers are the same.");
    if (side.looked) answer.append(this.rests(side));
    words.addEventListener("click", (event) => event.target.at !== undefined && this.pickToken(index, event.target));
    words.addEventListener("keydown", (event) => this.answerKey(event, index));
    return { words, line, hint: line.textContent };
  }

  // The two pictures and the sentence, or without pictures the three sentences, that the whole answer looked at most, the
  // question aside, which every answer looks at.
  rests({ looked }) {
    const { data, question, end } = this;
    const share = looked.meanOfAll();
    const best = (found, most) => found.map((part) => ({ ...part, sum: part.tokens.reduce((sum, n) => sum + share[n], 0) }))
      .filter(({ sum }) => sum > 0).sort((one, other) => other.sum - one.sum).slice(0, most);
    const said = sentences(data, end).filter((tokens) => tokens.length >= SENTENCE).map((tokens) => ({ tokens }));
    const parts = [
      ...best(data.views.map((view) => ({ view, tokens: view.tokens })), 2), ...best(said, data.views.length ? 1 : 3),
    ].sort((one, other) => other.sum - one.sum);
    const list = make("div", "rests");
    list.hidden = !parts.length;
    list.append(make("span", "muted", `Rested most on${question ? ", the question aside" : end < data.tokens.length ? ", the prompt's end aside" : ""}:`));
    for (const { view, tokens, sum } of parts) {
      const name = visible(view ? view.title : `“${shortened(tokens.map((n) => data.tokens[n]).join("").trim())}”`);
      const chip = list.appendChild(this.chip(name, percent(sum), tokens.reduce((best, n) => (share[n] > share[best] ? n : best), tokens[0])));
      if (view?.url) {
        const image = make("img");
        Object.assign(image, { src: view.url, alt: "" });
        image.classList.toggle("pixels", Math.max(view.width, view.height) < 160);
        chip.prepend(image);
      }
    }
    return list;
  }

  fork() {
    const mark = make("span", "fork");
    mark.append(make("span", "", "answers part here"));
    return mark;
  }

  answerKey(event, index) {
    const pieces = [...this.answers[index].words.querySelectorAll(".piece")];
    const at = pieces.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: pieces.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") this.pickToken(index, event.target);
    else if (pieces[to]) {
      pieces[at].tabIndex = -1;
      pieces[to].tabIndex = 0;
      pieces[to].focus();
    } else if (to === undefined) return;
    event.preventDefault();
  }

  pickToken(index, token) {
    const { looked } = this.data.sides[index];
    const row = looked ? looked.of.indexOf(token.at) : -1;
    const { line, hint } = this.answers[index];
    const { chosen } = this.state;
    if (row < 0) {
      const why = token.at ? "" : ": it comes from the prompt's own pass";
      line.textContent = looked ? `What this token looked at was not recorded${why}.` : hint;
      return this.change({ chosen: null });
    }
    line.textContent = hint;
    const again = chosen && chosen.side === index && chosen.at === token.at;
    return this.change(again ? { chosen: null } : { chosen: { side: index, row, at: token.at }, side: index });
  }

  controls() {
    const { layers, heads } = this.data.sides[0].kept;
    const which = by("which");
    which.hidden = !this.two;
    const labels = [...this.names, "Difference"];
    if (this.two) {
      labels.forEach((label, side) => {
        const radio = make("input");
        Object.assign(radio, { type: "radio", name: "side", value: side, checked: side === 0 });
        const box = which.appendChild(make("label", `choice ${["a", "b", "diff"][side]}`));
        box.append(radio, make("bdi", "", label));
        radio.addEventListener("change", () => this.change({ side, chosen: null }));
      });
    }
    for (const [id, size] of [["layer", layers], ["head", heads]]) {
      Object.assign(by(id), { max: size - 1, value: -1 });
      by(id).addEventListener("input", () => this.change({ [id]: Number(by(id).value) }));
    }
    by("controls").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.state.chosen && !by("large").open) this.change({ chosen: null });
    });
  }

  // A cell of a chart; the same again for all.
  choose(layer, head) {
    const same = this.state.layer === layer && this.state.head === head;
    this.change(same ? { layer: -1, head: -1 } : { layer, head });
  }

  labels() {
    const { state, data } = this;
    const { layers, heads } = data.sides[0].kept;
    const names = data.sides[Math.min(state.side, data.sides.length - 1)].layers;
    const texts = {
      layer: state.layer < 0 ? `all ${layers}` : `${names[state.layer]}`,
      head: state.head < 0 ? `all ${heads}` : `${state.head}`,
    };
    for (const [id, text] of Object.entries(texts)) {
      by(id).value = state[id];
      by(id).setAttribute("aria-valuetext", text);
      by(id).parentNode.querySelector("output").textContent = text;
    }
    by("which").querySelectorAll("input").forEach((radio, side) => (radio.checked = side === state.side));
    this.answers.forEach(({ words }, side) => words.querySelectorAll(".piece").forEach((piece) =>
      piece.setAttribute("aria-pressed", String(state.chosen?.side === side && state.chosen.at === piece.at))));
  }

  place() {
    const { layer, head } = this.state;
    const { layers, heads } = this.data.sides[0].kept;
    if (layer < 0 && head < 0) return `all ${layers * heads} heads of ${layers} layers`;
    if (head < 0) return `${this.charts.layerName(layer)}, all ${heads} heads`;
    return layer < 0 ? `head ${head} of all ${layers} layers` : `${this.charts.layerName(layer)}, head ${head}`;
  }

  captions() {
    const { state, now } = this;
    const of = pairs(this.data.sides[0].kept, state.layer, state.head).length;
    const most = Math.round(now.most * of);
    const host = by("legend");
    by("rested").hidden = !state.chosen;
    if (state.chosen) {
      this.rested();
      legend(host, "look", ["0", "", `${percent(now.most)}${now.share[0] > now.most ? " and more" : ""}`], true);
      by("caption").textContent = `Stronger: more of this pass' attention went there; ${this.place()}.`;
    } else if (state.side === 2) {
      const [a, b] = this.names;
      legend(host, "diff", [`only ${a}`, "alike", `only ${b}`], true);
      by("caption").textContent = `What one kept and the other dropped; ${this.place()}.`;
    } else {
      legend(host, now.ramp, of === 1 ? ["dropped", "", "kept"] : ["no head", "", `${most} of ${of} heads`], true);
      by("caption").textContent = `${this.two ? `${this.names[state.side]}. ` : ""}Stronger: kept by more heads. Grey: dropped by all. ${capital(this.place())}.`;
    }
    this.parts();
  }

  // How much a token of the answer rested on the prompt, and on the answer before it.
  rested() {
    const { chosen, layer, head } = this.state;
    const { looked, answer } = this.data.sides[chosen.side];
    const whole = layer < 0 && head < 0;
    const own = looked.own(chosen.row, layer, head);
    const title = make("p");
    title.append("Choosing ", make("mark", "", visible(answer[chosen.at])), ` (token ${chosen.at + 1}`,
      this.two ? ` of ${this.names[chosen.side]}` : "", "): ");
    const bar = make("div", "share");
    if (whole) {
      const prompt = looked.prompt[chosen.row];
      title.append(make("strong", "", percent(prompt)), " of attention went to the prompt, ",
        make("strong", "", percent(own)), " to the answer's own tokens.");
      bar.appendChild(make("span")).style.width = `${100 * prompt}%`;
    } else {
      // Not all the rest went to the prompt: some models' sinks take a share.
      title.append(make("strong", "", percent(own)), " of attention went to the answer's own tokens.",
        ` Shown are the ${looked.k} entries that each head attended to most.`);
      bar.hidden = true;
    }
    const back = make("button", "quiet", "Back to what was kept");
    back.type = "button";
    back.addEventListener("click", () => this.change({ chosen: null }));
    by("rested").replaceChildren(title, bar, back);
  }

  // The parts of the prompt that hold most of what is shown, as ways to them.
  parts() {
    const { now, data } = this;
    const textTokens = (this.textTokens ??= Array.from(data.modality.keys()).filter((n) => data.modality[n] === 0));
    const views = data.views.map((view) => ({ view, share: held(now, view) }))
      .sort((one, other) => other.share - one.share).slice(0, 3).filter(({ share }) => share > 0);
    const chips = views.map(({ view }) => {
      const strongest = view.tokens.reduce((best, n) => (Math.abs(now.share[n]) > Math.abs(now.share[best]) ? n : best), view.tokens[0]);
      return this.chip(visible(view.title), summary(now, view), strongest);
    });
    if (textTokens.length) {
      const strongest = textTokens.reduce((best, n) => (Math.abs(now.share[n]) > Math.abs(now.share[best]) ? n : best), textTokens[0]);
      chips.unshift(this.chip("all text", summary(now, { tokens: textTokens }), strongest));
    }
    by("parts").replaceChildren(...chips);
    this.follow();
  }

  // A token of the answer was chosen: the pane goes to what it looked at most, the newest words of the prompt aside,
  // which most tokens look at.
  follow() {
    const { chosen } = this.state;
    if (chosen === this.followed) return;
    this.followed = chosen;
    if (!chosen) return;
    const { now, data } = this;
    let best = 0;
    for (let n = 1; n < this.end; n++) if (now.share[n] > now.share[best]) best = n;
    this.prompt.goTo(best);
  }

  chip(name, number, token) {
    const chip = make("button", "chip");
    chip.type = "button";
    chip.append(make("bdi", "", name), make("span", "number", number));
    chip.addEventListener("click", () => this.prompt.goTo(token));
    return chip;
  }

  // The whole prompt in one strip; a click goes there.
  ribbon() {
    const { data } = this;
    const size = data.tokens.length;
    const cells = Math.max(1, Math.min(size, 320));
    const from = (cell) => Math.floor((cell * size) / cells);
    const mean = (cell) => {
      let sum = 0;
      for (let n = from(cell); n < from(cell + 1); n++) sum += this.now.share[n];
      return sum / (from(cell + 1) - from(cell));
    };
    const kind = (cell) => KINDS[data.modality[from(cell)]] ?? "padding";
    const titles = new Map(data.views.flatMap((view) => Array.from(view.tokens, (n) => [n, visible(view.title)])));
    this.ribbonField = new Field({
      label: "The whole prompt, from its first token to its last", boxes: gridBoxes(cells, 1),
      pick: (cell) => this.prompt.goTo(from(cell)),
      tell: (cell) => `tokens ${from(cell)} to ${from(cell + 1) - 1}: ${titles.get(from(cell)) ?? kind(cell)}\n${
        this.now.ramp === "diff" ? "difference" : this.now.ramp === "look" ? "attention" : "kept"} ${percent(Math.abs(mean(cell) * (this.now.ramp === "look" ? from(cell + 1) - from(cell) : 1)))}`,
      paint: (context, width, height) => {
        if (!this.now || !size) return;
        const values = Array.from({ length: cells }, (_, cell) => mean(cell));
        const most = Math.max(1e-12, ...values.slice(this.now.ramp === "look" ? 1 : 0).map(Math.abs));
        const signed = this.now.ramp === "diff";
        const foot = 5;
        const room = (height - foot - 2) / (signed ? 2 : 1);
        const ground = signed ? room : height - foot - 2;
        const line = Object.fromEntries([["text", "--muted"], ["padding", "--rule"]].map(([key, name]) => [key, tone(name)]));
        const picture = tone("--picture");
        values.forEach((value, cell) => {
          // The first side's upwards, as it stands first everywhere.
          const up = signed ? value <= 0 : true;
          const x = (cell * width) / cells;
          const wide = Math.ceil(((cell + 1) * width) / cells) - x;
          const part = Math.min(1, Math.abs(value) / most);
          const tall = part * room;
          context.fillStyle = css(colour(this.now.ramp, Math.sign(value) * (0.45 + 0.4 * part)));
          context.fillRect(x, up ? ground - tall : ground, wide, tall);
          context.fillStyle = line[kind(cell)] ?? picture;
          context.fillRect(x, height - foot, wide, foot);
        });
      },
    });
    by("ribbon").append(this.ribbonField.root, this.ribbonKey());
  }

  ribbonKey() {
    const key = make("p", "muted ends");
    key.append(make("span", "", "first token"));
    const kinds = key.appendChild(make("span"));
    const others = kindsOf(this.data).filter((name) => name !== "text").join(", ");
    if (others) kinds.append(make("span", "key tokens", "text"), make("span", "key picture", others));
    key.append(make("span", "", "last token"));
    return key;
  }

  dialog() {
    const dialog = by("large");
    this.shown = -1;
    dialog.addEventListener("close", () => {
      this.shown = -1;
      tip.hide();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "PageDown" || event.key === "PageUp") {
        event.preventDefault();
        this.openPicture(this.shown + (event.key === "PageDown" ? 1 : -1));
      }
    });
  }

  openPicture(index) {
    if (index < 0 || index >= this.data.views.length) return;
    const dialog = by("large");
    this.shown = index;
    this.largePicture = new Picture(this.data, index, true);
    const bar = make("div", "row");
    for (const [label, to] of [["← previous", index - 1], ["next →", index + 1]]) {
      const button = bar.appendChild(make("button", "quiet", label));
      button.type = "button";
      button.disabled = to < 0 || to >= this.data.views.length;
      button.addEventListener("click", () => this.openPicture(to));
    }
    const close = bar.appendChild(make("button", "quiet", "Close"));
    close.type = "button";
    close.addEventListener("click", () => dialog.close());
    const line = make("p", "muted", `${by("caption").textContent}`);
    dialog.replaceChildren(bar, this.largePicture.figure, line);
    if (!dialog.open) dialog.showModal();
    this.largePicture.paint(this.now);
    this.largePicture.field.root.focus({ preventScroll: true });
  }

  download() {
    const link = by("download");
    link.addEventListener("click", () => {
      const blob = new Blob([JSON.stringify(plainData(this.data))], { type: "application/json" });
      URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(blob);
    });
  }

  theme() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    let own = null;
    const set = () => {
      const theme = own ?? (dark.matches ? "dark" : "light");
      document.documentElement.dataset.theme = theme;
      by("theme").textContent = theme === "dark" ? "Light" : "Dark";
      by("theme").setAttribute("aria-label", `${theme === "dark" ? "light" : "dark"} colours`);
      makeRamps(theme);
      if (this.prompt) {
        this.prompt.pictures.forEach((picture) => (picture.now = null));
        this.paint();
      }
    };
    dark.addEventListener("change", set);
    by("theme").addEventListener("click", () => {
      own = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      set();
    });
    set();
  }
}

// The first token of the answers that is not the same; -1 if there is none.
function partsAt([one, other]) {
  const longest = Math.max(one.answer.length, other.answer.length);
  for (let at = 0; at < longest; at++) if (one.answer[at] !== other.answer[at]) return at;
  return -1;
}

// Tokens of each sentence before `until`. The prompt's first token is in none: models park attention there.
function sentences(data, until) {
  const found = [];
  let open = null;
  for (let n = 1; n < until; n++) {
    if (data.modality[n] !== 0) open = null;
    else {
      if (!open) found.push((open = []));
      open.push(n);
      if (/[.!?。！？]\s*$|\n/.test(data.tokens[n])) open = null;
    }
  }
  return found;
}

function shortened(text) {
  const letters = Array.from(text);
  return letters.length > 60 ? `${letters.slice(0, 60).join("")}…` : text;
}

function bytes(size) {
  const [unit, scale] = size >= 1e9 ? ["GB", 1e9] : size >= 1e6 ? ["MB", 1e6] : ["kB", 1e3];
  return `${Number((size / scale).toPrecision(3))} ${unit}`;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

decode(by("data").textContent).then((data) => {
  window.report = new Page(data);
  document.documentElement.dataset.ready = "yes";
});
