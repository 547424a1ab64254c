// The prompt as it was read: text in pieces that are shaded only while they are in sight, pictures where they stand.

const PIECE = 400; // tokens of text that are shaded together
const KINDS = ["text", "image", "video", "audio"];
const BESIDE = { letters: 120, lines: 3 }; // of text that stands beside pictures

// The modalities of a prompt.
function kindsOf(data) {
  return KINDS.filter((_, kind) => data.modality.includes(kind));
}

// Runs of text and runs of pictures, in reading order: {text, start, end} or {views, loose, start, end}.
function runs(data) {
  const { modality, tokens, views } = data;
  const starts = new Map();
  const placed = new Uint8Array(tokens.length);
  views.forEach((view, index) => {
    if (!view.tokens.length) return;
    const first = view.tokens.reduce((least, n) => Math.min(least, n), Infinity);
    starts.set(first, [...(starts.get(first) ?? []), index]);
    view.tokens.forEach((n) => (placed[n] = 1));
  });
  const found = [];
  for (let n = 0; n < tokens.length; n++) {
    if (modality[n] < 0) continue;
    const text = modality[n] === 0 && !placed[n];
    let run = found.at(-1);
    const full = run?.text && (n - run.start >= 2 * PIECE || (n - run.start >= PIECE && tokens[n - 1].includes("\n")));
    if (!run || run.text !== text || run.end !== n || full) {
      run = { text, start: n, views: [], loose: 0 };
      found.push(run);
    }
    run.end = n + 1;
    if (text) continue;
    if (starts.has(n)) run.views.push(...starts.get(n));
    if (!placed[n]) run.loose++;
  }
  return found;
}

class Prompt {
  constructor(data, pane, open) {
    Object.assign(this, { data, pane, open, inSight: new Set(), current: null, now: null });
    this.pictures = data.views.map((view, index) => new Picture(data, index));
    this.runs = runs(data);
    this.watch = new IntersectionObserver((entries) => entries.forEach((entry) => this.sight(entry)), {
      root: pane, rootMargin: "200px 0px",
    });
    pane.style.setProperty("--thumb", `${data.views.length <= 6 ? 184 : data.views.length <= 40 ? 136 : 104}px`);
    pane.append(...this.runs.map((run) => this.element(run)));
    this.rove(this.stop(0, 1));
    pane.addEventListener("pointerover", (event) => this.point(event.target));
    pane.addEventListener("pointerleave", () => tip.hide());
    pane.addEventListener("scroll", () => tip.hide());
    pane.addEventListener("focusin", (event) => this.point(event.target));
    pane.addEventListener("focusout", () => tip.hide());
    pane.addEventListener("click", (event) => this.click(event.target));
    pane.addEventListener("keydown", (event) => this.key(event));
  }

  element(run) {
    run.element = make("div", run.text ? "text" : "pictures");
    run.element.run = run;
    if (run.text) {
      const text = this.data.tokens.slice(run.start, run.end).join("");
      run.element.textContent = visible(text);
      // A few words beside a picture stand in one line with it; newlines around them may be many.
      const own = text.trim();
      run.element.classList.toggle("short", this.data.views.length > 0 && own.length < BESIDE.letters && own.split("\n").length <= BESIDE.lines);
      this.watch.observe(run.element);
      return run.element;
    }
    for (const index of run.views) {
      const figure = run.element.appendChild(this.pictures[index].figure);
      figure.run = run;
      this.watch.observe(figure);
    }
    if (run.loose) {
      const kind = KINDS[this.data.modality[run.start]] ?? "other";
      const what = run.views.length ? `and ${run.loose} ${kind} tokens without a place of their own` : `${run.loose} ${kind} tokens`;
      run.element.append(make("p", "loose muted", what));
    }
    return run.element;
  }

  sight({ target, isIntersecting }) {
    if (!isIntersecting) {
      this.inSight.delete(target);
      if (target.run.text && target.built && !target.contains(document.activeElement)) {
        target.textContent = visible(this.data.tokens.slice(target.run.start, target.run.end).join(""));
        target.built = false;
      }
      return;
    }
    this.inSight.add(target);
    this.build(target);
    this.shade(target);
  }

  build(element) {
    if (!element.run.text || element.built) return;
    const { start, end } = element.run;
    element.replaceChildren(...this.data.tokens.slice(start, end).map((piece, i) => {
      const span = make("span", "token", visible(piece));
      span.n = start + i;
      return span;
    }));
    element.built = true;
    if (this.current && !this.current.view && this.current.n >= start && this.current.n < end) this.rove(this.current);
  }

  paint(now) {
    this.now = now;
    this.inSight.forEach((element) => this.shade(element));
  }

  shade(element) {
    const { now } = this;
    if (!now) return;
    if (!element.run.text) return element.picture.paint(now);
    for (const span of element.children) {
      const shown = now.most ? strength(now.ramp, now.share[span.n] / now.most) : 0;
      const back = Math.abs(shown) > 0.015 ? colour(now.ramp, shown) : null;
      span.style.backgroundColor = back ? css(back) : "";
      span.style.color = back ? ink(back) : "";
      span.classList.toggle("gone", now.gone(span.n));
    }
  }

  point(target) {
    if (target.n === undefined || !this.now) return;
    const piece = JSON.stringify(visible(this.data.tokens[target.n])).slice(1, -1);
    tip.show(`${piece}\ntoken ${target.n} · ${this.now.tell(target.n)}`, target.getClientRects()[0] ?? target.getBoundingClientRect());
  }

  click(target) {
    if (target.n !== undefined) {
      this.rove({ n: target.n });
      this.point(target);
    }
    const figure = target.closest("figure");
    if (figure) this.open(figure.picture.index);
  }

  // Where one may stand: {n} of a token of text, {n, view} of a picture. The first at or after n, one way or the other.
  stop(n, way) {
    for (let i = way > 0 ? 0 : this.runs.length - 1; i >= 0 && i < this.runs.length; i += way) {
      const run = this.runs[i];
      if (way > 0 ? run.end <= n : run.start > n) continue;
      if (run.text) return { n: Math.min(run.end - 1, Math.max(run.start, n)) };
      if (run.views.length) return { n: run.start, run, view: way > 0 ? 0 : run.views.length - 1 };
    }
    return null;
  }

  move(way) {
    const { n, run, view } = this.current;
    if (run && run.views[view + way] !== undefined) return { n, run, view: view + way };
    return this.stop(run ? (way > 0 ? run.end : run.start - 1) : n + way, way);
  }

  // One token or picture is on the way of the Tab key: the one where one was last.
  rove(stop) {
    if (!stop) return null;
    this.standing?.removeAttribute("tabindex");
    this.current = stop;
    if (stop.view !== undefined) this.standing = this.pictures[stop.run.views[stop.view]].figure;
    else {
      const run = this.runs.find((each) => each.text && stop.n >= each.start && stop.n < each.end);
      if (!run.element.built) return (this.standing = null);
      this.standing = run.element.children[stop.n - run.start];
    }
    this.standing.tabIndex = 0;
    return this.standing;
  }

  key(event) {
    const picture = event.target.picture;
    if (picture && (event.key === "Enter" || event.key === " ")) this.open(picture.index);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") this.stand(this.move(event.key === "ArrowRight" ? 1 : -1));
    else if (event.key === "Home") this.stand(this.stop(0, 1));
    else if (event.key === "End") this.stand(this.stop(this.data.tokens.length - 1, -1));
    else return;
    event.preventDefault();
  }

  stand(stop) {
    if (!stop) return;
    if (stop.view === undefined) {
      const { element } = this.runs.find((run) => run.text && stop.n >= run.start && stop.n < run.end);
      this.build(element);
      this.shade(element);
    }
    this.rove(stop)?.focus({ preventScroll: true });
    this.reveal(this.standing);
  }

  // Scrolls the pane alone, to what holds token n.
  goTo(n) {
    const run = this.runs.find((each) => n >= each.start && n < each.end);
    if (!run) return;
    const index = run.views.find((view) => this.data.views[view].tokens.includes(n));
    if (run.text) {
      this.build(run.element);
      this.shade(run.element);
    }
    this.reveal(run.text ? run.element.children[n - run.start] : this.pictures[index]?.figure ?? run.element, true);
  }

  reveal(element, flash) {
    const box = element.getBoundingClientRect();
    const frame = this.pane.getBoundingClientRect();
    if (flash || box.top < frame.top || box.bottom > frame.bottom) {
      this.pane.scrollTop += box.top - frame.top - Math.max(16, (frame.height - box.height) / 3);
    }
    if (!flash) return;
    element.classList.remove("flash");
    void element.offsetWidth; // starts the animation again
    element.classList.add("flash");
  }
}

// How much of a colour lies over a patch, where being seen at all does not say it.
const TINT = { diff: 0.6, look: 0.3 };

// A picture with its patches: those that stay in colour, the rest grey. Thumbnails and the large view are alike.
class Picture {
  constructor(data, index, large = false) {
    const view = data.views[index];
    Object.assign(this, { data, index, view, now: null });
    this.figure = make("figure");
    this.figure.picture = this;
    const frame = this.figure.appendChild(make("div", "frame"));
    if (!large) this.figure.setAttribute("role", "button");
    this.image = new Image();
    this.covered = view.url && view.known;
    this.field = new Field({
      label: visible(view.title), boxes: view.boxes, focusable: large,
      paint: (context, width, height) => this.draw(context, width, height),
      tell: (cell) => this.tell(cell),
      idle: () => !this.now || (view.url && !this.image.complete),
    });
    if (view.url) {
      this.image.alt = "";
      this.image.addEventListener("load", () => this.field.draw());
      this.image.src = view.url;
      this.image.classList.toggle("pixels", Math.max(view.width, view.height) < 160);
    }
    const shape = view.known && view.url ? view.width / view.height : columns(view.boxes, 0) / columns(view.boxes, 1);
    this.figure.style.setProperty("--shape", Math.min(5, Math.max(0.2, shape || 1)));
    if (view.url && !view.known) {
      const plain = frame.appendChild(make("div", "plain"));
      plain.append(this.image);
    }
    if (this.covered) this.field.root.prepend(this.image);
    this.field.root.classList.toggle("covered", Boolean(this.covered));
    frame.append(this.field.root);
    this.meter = this.figure.appendChild(make("div", "meter")).appendChild(make("span"));
    const caption = this.figure.appendChild(make("figcaption"));
    caption.append(make("bdi", "", visible(view.title)));
    this.number = caption.appendChild(make("span", "number"));
    if (!view.known) caption.append(make("span", "unknown", "where these tokens lie in the picture is not known"));
  }

  paint(now) {
    if (this.now === now) return;
    this.now = now;
    this.number.textContent = summary(now, this.view);
    this.meter.style.width = `${100 * Math.min(1, held(now, this.view))}%`;
    this.meter.style.background = css(colour(now.ramp === "diff" ? "picture" : now.ramp, 0.6));
    this.figure.setAttribute("aria-label", `${visible(this.view.title)}, ${this.number.textContent}`);
    this.field.draw();
  }

  tell(cell) {
    const n = this.view.tokens[cell];
    return `${visible(this.view.title)}, patch ${cell + 1} of ${this.view.tokens.length}\ntoken ${n} · ${this.now?.tell(n)}`;
  }

  draw(context, width, height) {
    const { now, view, image } = this;
    const whole = this.covered && image.naturalWidth > 0;
    const cells = this.cells(context, width, height);
    if (!whole) {
      for (const { x, y, w, h, value } of cells) {
        context.fillStyle = css(colour(now.ramp, value));
        context.fillRect(x + 0.5, y + 0.5, Math.max(1, w - 1), Math.max(1, h - 1));
      }
      return;
    }
    // Patches are a mask of the picture, which is drawn but once.
    for (const { x, y, w, h, value, under } of cells) {
      context.globalAlpha = now.ramp === "diff" ? under : under + (1 - under) * Math.abs(value);
      context.fillRect(x, y, w, h);
    }
    context.globalAlpha = 1;
    context.globalCompositeOperation = "source-in";
    context.imageSmoothingEnabled = !image.classList.contains("pixels");
    context.drawImage(image, 0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    context.lineWidth = 1.5;
    for (const { x, y, w, h, value } of cells) {
      const shown = Math.abs(value);
      context.fillStyle = context.strokeStyle = css(colour(now.ramp, Math.sign(value) * 0.62));
      if (TINT[now.ramp] && shown > 0.02) {
        context.globalAlpha = TINT[now.ramp] * shown;
        context.fillRect(x, y, w, h);
      }
      if (Math.min(w, h) > 8 && shown > 0.1) {
        context.globalAlpha = shown * shown;
        context.strokeRect(x + 0.75, y + 0.75, w - 1.5, h - 1.5);
      }
    }
    context.globalAlpha = 1;
  }

  // Patches that are not gone, on whole pixels of the screen: no seams show.
  cells(context, width, height) {
    const { now, view } = this;
    const scale = context.getTransform().a;
    const snap = (share, size) => Math.round(share * size * scale) / scale;
    const found = [];
    for (let cell = 0; cell < view.tokens.length; cell++) {
      const n = view.tokens[cell];
      const value = now.most ? strength(now.ramp, now.share[n] / now.most) : 0;
      const under = now.under(n);
      if (Math.max(Math.abs(value), under) < 0.02) continue;
      const at = 4 * cell;
      const [x, y] = [snap(view.boxes[at], width), snap(view.boxes[at + 1], height)];
      found.push({ x, y, w: snap(view.boxes[at + 2], width) - x, h: snap(view.boxes[at + 3], height) - y, value, under });
    }
    return found;
  }
}

// How many cells stand side by side along an axis.
function columns(boxes, axis) {
  const starts = new Set();
  for (let i = axis; i < boxes.length; i += 4) starts.add(boxes[i].toFixed(4));
  return starts.size;
}

// The share of what is shown that a picture, or all text, holds: of attention its sum, else the mean of its tokens.
function held(now, { tokens }) {
  let sum = 0;
  for (const n of tokens) sum += Math.abs(now.share[n]);
  return now.ramp === "look" ? sum : sum / Math.max(1, tokens.length);
}

function summary(now, part) {
  return `${percent(held(now, part))} ${{ look: "of attention", diff: "differs" }[now.ramp] ?? "kept"}`;
}
