// Colours: one hue per meaning, apart for colour-blind eyes too. Each ramp goes from the page's ground to its strongest.

const STOPS = {
  light: {
    a: ["#ffffff", "#cfe1f2", "#93c4de", "#4a97c9", "#1764ab", "#08306b"],
    b: ["#ffffff", "#fde0c0", "#fdba79", "#f4862f", "#cc5003", "#7f2704"],
    look: ["#ffffff", "#fbd0d6", "#f799b5", "#e2489a", "#a8107c", "#4f0a5e"],
    text: ["#f5f3ef", "#e8d7b4", "#c99a4b", "#94570f", "#543005"],
    picture: ["#f5f3ef", "#bfe3dc", "#5fb3a8", "#12766c", "#003c30"],
  },
  dark: {
    a: ["#15181d", "#15304f", "#1c4f86", "#2f7cc0", "#6db3e8", "#d3eaff"],
    b: ["#15181d", "#4a260c", "#83400c", "#c4650f", "#f39a45", "#ffe2bd"],
    look: ["#15181d", "#4a1238", "#8a1a63", "#c9388c", "#f281b4", "#ffdbe6"],
    text: ["#22252b", "#4d3713", "#8a6020", "#c79846", "#f3dcae"],
    picture: ["#22252b", "#0f4740", "#1a786d", "#4fb5a7", "#b9ebe2"],
  },
};

const ramps = {};

function makeRamps(theme) {
  for (const [name, stops] of Object.entries(STOPS[theme])) {
    const points = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
    ramps[name] = Array.from({ length: 65 }, (_, i) => {
      const at = (i / 64) * (points.length - 1);
      const low = Math.min(Math.floor(at), points.length - 2);
      return points[low].map((from, channel) => Math.round(from + (at - low) * (points[low + 1][channel] - from)));
    });
  }
}

// A pair of ramps stands for numbers of both signs.
const SIGNED = { diff: ["b", "a"], preference: ["picture", "text"] };

// [r, g, b] of a number in 0 to 1, or in -1 to 1 for a pair.
function colour(ramp, value) {
  const name = SIGNED[ramp] ? SIGNED[ramp][value < 0 ? 1 : 0] : ramp;
  return ramps[name][Math.round(64 * Math.min(1, Math.abs(value)))];
}

function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

// How strongly a share is painted. A few tokens have most of it, be it heads or attention; the rest should be seen as well.
const BEND = { a: 0.6, b: 0.6, diff: 0.7, look: 0.5 };

function strength(ramp, share) {
  return Math.sign(share) * Math.pow(Math.min(1, Math.abs(share)), BEND[ramp] ?? 1);
}

// Ink that is read on a colour.
function ink([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#101216" : "#ffffff";
}

function gradient(ramp, bent) {
  const low = SIGNED[ramp] ? -1 : 0;
  const shown = (share) => (bent ? strength(ramp, share) : share);
  const steps = Array.from({ length: 25 }, (_, i) => css(colour(ramp, shown(low + ((1 - low) * i) / 24))));
  return `linear-gradient(to right, ${steps.join(", ")})`;
}
