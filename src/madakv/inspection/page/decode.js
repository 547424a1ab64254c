"use strict";
// The embedded data: arrays come as base64 of zlib's format.

const ARRAYS = { bits: Uint8Array, u8: Uint8Array, i8: Int8Array, u16: Uint16Array, i32: Int32Array, f32: Float32Array };

async function unpack(stored) {
  if (stored === null) return null;
  const text = atob(stored.data);
  const raw = new Uint8Array(text.length);
  for (let i = 0; i < raw.length; i++) raw[i] = text.charCodeAt(i);
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new ARRAYS[stored.type](await new Response(stream).arrayBuffer());
}

async function decode(text) {
  const data = JSON.parse(text);
  data.modality = await unpack(data.modality);
  data.preference = await unpack(data.preference);
  const [tokens, boxes] = [await unpack(data.view_tokens), await unpack(data.view_boxes)];
  let from = 0;
  for (const view of data.views) {
    view.tokens = tokens.subarray(from, from + view.size);
    view.boxes = boxes.subarray(4 * from, 4 * (from + view.size));
    from += view.size;
  }
  for (const side of data.sides) {
    side.kept = new Kept(await unpack(side.kept), side.kept.shape);
    side.asked = await unpack(side.asked);
    side.stays = await unpack(side.stays);
    if (side.looked) side.looked = new Looked(side.looked, await Promise.all(
      ["mean", "best", "weight", "answer"].map((name) => unpack(side.looked[name]))), side.kept);
  }
  return data;
}

// The same data with plain lists, for programs that read it.
function plainData(data) {
  const rows = (values, width) =>
    values && Array.from({ length: values.length / width }, (_, i) => Array.from(values.subarray(i * width, (i + 1) * width)));
  const perHead = (values, heads) => values && rows(values, heads).map((row) => row.map(numberOrNull));
  const { layers, heads } = data.sides[0].kept;
  return {
    model: data.model,
    tokens: data.tokens,
    modality: Array.from(data.modality),
    views: data.views.map((view) => ({
      title: view.title, known: view.known, tokens: Array.from(view.tokens), boxes: rows(view.boxes, 4),
    })),
    preference: data.preference && Array.from({ length: layers }, (_, layer) =>
      perHead(data.preference.subarray(layer * heads * 4, (layer + 1) * heads * 4), 4)),
    sides: data.sides.map((side) => ({
      label: side.label, method: side.method, budget: side.budget, layers: side.layers,
      kept: Array.from({ length: layers }, (_, layer) =>
        Array.from({ length: heads }, (_, head) => side.kept.positions(layer, head))),
      asked: perHead(side.asked, heads), stays: perHead(side.stays, heads),
      answer: side.answer, looked: side.looked && side.looked.plain(),
      kv_bytes: side.bytes, kv_bytes_full: side.bytes_full, rows: side.rows,
    })),
  };
}

function numberOrNull(value) {
  return Number.isFinite(value) ? value : null;
}
