// A canvas of cells that are pointed at, tapped, or walked with arrow keys: pictures, heat maps and bars alike.

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const tip = {
  element: document.getElementById("tip"),
  show(text, box) {
    const { element } = tip;
    // A modal dialog hides all that is not in it.
    const host = document.querySelector("dialog[open]") ?? document.body;
    if (element.parentNode !== host) host.append(element);
    element.textContent = text;
    element.hidden = false;
    const width = element.offsetWidth;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), document.documentElement.clientWidth - width - 8);
    const above = box.top - element.offsetHeight - 8;
    element.style.left = `${left}px`;
    element.style.top = `${above > 8 ? above : box.bottom + 8}px`;
  },
  hide() { tip.element.hidden = true; },
};

const resized = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.field?.draw()));
let fields = 0;

class Field {
  // boxes: [4 * cells], left, top, right, bottom as shares. paint(context, width, height), tell(cell), pick(cell); idle() while there
  // is nothing to paint.
  constructor({ label, boxes, paint, tell, pick, idle, focusable = true }) {
    Object.assign(this, { boxes, paint, tell, pick, idle, at: -1, cells: boxes.length / 4 });
    this.root = make("div", "field");
    this.canvas = this.root.appendChild(make("canvas"));
    this.cursor = this.root.appendChild(make("div", "cursor"));
    this.cursor.id = `cursor${fields++}`;
    this.cursor.hidden = true;
    this.canvas.field = this;
    this.root.field = this;
    resized.observe(this.root);
    if (focusable) {
      this.root.tabIndex = 0;
      this.root.setAttribute("role", "application");
      this.root.setAttribute("aria-label", `${label}. Arrow keys go from cell to cell.`);
      this.root.setAttribute("aria-activedescendant", this.cursor.id);
      this.cursor.setAttribute("role", "img");
      this.root.addEventListener("keydown", (event) => this.key(event));
      this.root.addEventListener("focus", () => this.root.matches(":focus-visible") && this.show(Math.max(0, this.at)));
      this.root.addEventListener("blur", () => this.show(-1));
    }
    this.root.addEventListener("pointermove", (event) => this.show(this.find(event)));
    this.root.addEventListener("pointerleave", () => this.show(-1));
    this.root.addEventListener("click", (event) => {
      this.show(this.find(event));
      if (this.at >= 0) this.pick?.(this.at);
    });
  }

  find(event) {
    const frame = this.root.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width;
    const y = (event.clientY - frame.top) / frame.height;
    for (let i = 0; i < this.boxes.length; i += 4) {
      if (x >= this.boxes[i] && x < this.boxes[i + 2] && y >= this.boxes[i + 1] && y < this.boxes[i + 3]) return i / 4;
    }
    return -1;
  }

  show(cell) {
    const there = cell >= 0 && cell < this.cells;
    this.cursor.hidden = !there;
    if (!there) return tip.hide();
    this.at = cell;
    const [left, top, right, bottom] = this.boxes.subarray(cell * 4, cell * 4 + 4);
    Object.assign(this.cursor.style, {
      left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
    });
    const text = this.tell(cell);
    this.cursor.setAttribute("aria-label", text);
    tip.show(text, this.cursor.getBoundingClientRect());
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) this.show(this.next(way));
    else if (event.key === "Home") this.show(0);
    else if (event.key === "End") this.show(this.cells - 1);
    else if ((event.key === "Enter" || event.key === " ") && this.at >= 0) this.pick?.(this.at);
    else return;
    event.preventDefault();
  }

  // The nearest cell that way, a step aside costing more than a step ahead.
  next([dx, dy]) {
    const centre = (cell, axis) => (this.boxes[cell * 4 + axis] + this.boxes[cell * 4 + axis + 2]) / 2;
    const from = Math.max(0, this.at);
    let best = from;
    let least = Infinity;
    for (let cell = 0; cell < this.cells; cell++) {
      const x = centre(cell, 0) - centre(from, 0);
      const y = centre(cell, 1) - centre(from, 1);
      const ahead = x * dx + y * dy;
      const cost = ahead + 4 * Math.abs(x * dy + y * dx);
      if (ahead > 1e-6 && cost < least) [best, least] = [cell, cost];
    }
    return best;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.root;
    if (!width || !height || this.idle?.()) return;
    const scale = Math.min(3, window.devicePixelRatio || 1);
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    this.paint(context, width, height);
  }
}

// Cells of equal size, row by row.
function gridBoxes(columns, rows) {
  const boxes = new Float32Array(4 * columns * rows);
  for (let i = 0; i < columns * rows; i++) {
    const [x, y] = [i % columns, Math.floor(i / columns)];
    boxes.set([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], 4 * i);
  }
  return boxes;
}
