/** The map's thumbnails on one canvas. Grey ones become ink in the colour of their label, others have a frame in it. */

import { context } from "./pictures.js";

const FRAME = 2; // pixels

/** The colour of a label on a light or dark background, one hue per label. @param {number} label @param {number} count @param {boolean} dark */
export function hue(label, count, dark) {
  if (label < 0) return dark ? "oklch(80% 0 0)" : "oklch(40% 0 0)";
  return `oklch(${dark ? "80%" : "52%"} 0.13 ${Math.round((360 * label) / count + 20)})`;
}

export class Thumbnails {
  /**
   * @param {ImageBitmap} sheet all thumbnails without gaps
   * @param {import("./plane.js").LatentMap} map
   * @param {import("./model.js").Model} model
   */
  constructor(sheet, map, { channels, smooth }) {
    const { width, height, columns } = map.thumbnails;
    this.width = width;
    this.height = height;
    this.columns = columns;
    this.labels = map.labels ?? new Array(map.points.length).fill(-1);
    this.count = map.label_names?.length ?? 0;
    this.grey = channels === 1;
    this.smooth = smooth;
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width: sheet.width, height: sheet.height });
    const pen = context(this.canvas);
    pen.drawImage(sheet, 0, 0);
    if (this.grey) inkOnly(pen, sheet.width, sheet.height);
  }

  /** Colour the ink by label. @param {boolean} dark */
  tint(dark) {
    this.dark = dark;
    if (!this.grey) return;
    const pen = context(this.canvas);
    pen.globalCompositeOperation = "source-atop"; // only where there is ink
    this.labels.forEach((label, index) => {
      const [x, y] = this.#corner(index);
      pen.fillStyle = hue(label, this.count, dark);
      pen.fillRect(x, y, this.width, this.height);
    });
    pen.globalCompositeOperation = "source-over";
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} index @param {number} x centre @param {number} y @param {number} side of the longer edge, in pixels */
  draw(pen, index, x, y, side) {
    const scale = side / Math.max(this.width, this.height);
    const [w, h] = [this.width * scale, this.height * scale];
    const [left, top] = this.#corner(index);
    pen.drawImage(this.canvas, left, top, this.width, this.height, x - w / 2, y - h / 2, w, h);
    if (this.grey || !this.count) return;
    pen.strokeStyle = hue(this.labels[index], this.count, Boolean(this.dark));
    pen.lineWidth = FRAME;
    pen.strokeRect(x - w / 2, y - h / 2, w, h);
  }

  /** @param {number} index @returns {[number, number]} */
  #corner(index) {
    return [(index % this.columns) * this.width, Math.floor(index / this.columns) * this.height];
  }
}

/** Turn grey levels into opacity; the more common end of the scale becomes transparent. @param {CanvasRenderingContext2D} pen @param {number} width @param {number} height */
function inkOnly(pen, width, height) {
  const image = pen.getImageData(0, 0, width, height);
  const { data } = image;
  let sum = 0;
  for (let at = 0; at < data.length; at += 4) sum += data[at];
  const lightPaper = sum / (data.length / 4) > 127;
  for (let at = 0; at < data.length; at += 4) data[at + 3] = lightPaper ? 255 - data[at] : data[at];
  pen.putImageData(image, 0, 0);
}
