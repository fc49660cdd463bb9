// Pictures from this device: made small enough to send quickly, embedded once per encoder, kept while the page is open.

import { embed } from "./api.js";

const LONGEST = 1024; // pixels: what is larger is made smaller here, encoders look at far less
const HEAVY = 1 << 20; // bytes
const held = new Map(); // id -> {name, blob, preview, rows: Map(fingerprint -> Promise)}
let last = 0;

/** Keep a picture; the id under which a term names it. */
export async function keep(file) {
  const id = `${++last}`;
  const entry = { name: file.name || "picture", blob: file, preview: null, rows: new Map() };
  held.set(id, entry);
  try {
    const bitmap = await createImageBitmap(file); // upright, as its EXIF says
    entry.preview = drawn(bitmap, 96, true);
    if (file.size > HEAVY || Math.max(bitmap.width, bitmap.height) > 2 * LONGEST) entry.blob = await smaller(bitmap);
    bitmap.close();
  } catch {
    // the browser cannot read it; the server may, or says in words why not
  }
  return id;
}

export const upload = (id) => held.get(id);
export const newest = () => last;

function drawn(bitmap, side, square) {
  const scale = (square ? Math.max : Math.min)(side / bitmap.width, side / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = square ? [side, side] : [Math.round(width), Math.round(height)];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // alpha lies on white, as on the server
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  return canvas;
}

const smaller = (bitmap) =>
  new Promise((resolve, reject) =>
    drawn(bitmap, Math.min(LONGEST, Math.max(bitmap.width, bitmap.height)), false).toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Error("no JPEG"))),
      "image/jpeg",
      0.92,
    ),
  );

/** (D,) of a kept picture by the encoder of an index. A failure is not kept: the next search tries again. */
export function row(id, index, fingerprint) {
  const { rows, blob } = held.get(id);
  const key = fingerprint ?? index;
  if (!rows.has(key)) {
    const made = base64(blob).then((data) => embed(data, index));
    made.catch(() => rows.delete(key));
    rows.set(key, made);
  }
  return rows.get(key);
}

const base64 = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
