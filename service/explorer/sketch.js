/** A canvas to draw on with a finger, pen or mouse. It also shows images from elsewhere. */

import { context } from "./pictures.js";

const SIDE = 280; // the longer side, in canvas pixels
const PEN = 0.075; // share of the longer side: a stroke of two pixels in an image of 28

export class Sketch {
  ground = "#000000";
  ink = "#ffffff";
  #fresh = true; // the next stroke starts a new drawing

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./model.js").Model} model
   * @param {AbortSignal} signal
   * @param {() => void} changed called for every part of a stroke
   */
  constructor(canvas, model, signal, changed) {
    const scale = SIDE / Math.max(model.width, model.height);
    canvas.width = Math.round(model.width * scale);
    canvas.height = Math.round(model.height * scale);
    this.canvas = canvas;
    this.context = context(canvas);
    /** @type {{ x: number, y: number } | undefined} */
    let last;
    const draw = (/** @type {PointerEvent} */ event) => {
      for (const each of event.getCoalescedEvents?.() ?? []) last = this.#line(last, each);
      last = this.#line(last, event);
      changed();
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (this.#fresh) this.clear();
      this.#fresh = false;
      last = undefined;
      draw(event);
    }, { signal });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) draw(event);
    }, { signal });
  }

  /** Fill with the background. */
  clear() {
    this.context.fillStyle = this.ground;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /**
   * Show a whole image; the next stroke replaces it.
   * @param {ImageBitmap} picture
   */
  show(picture) {
    const { width, height } = this.canvas;
    const scale = Math.min(width / picture.width, height / picture.height);
    const [w, h] = [picture.width * scale, picture.height * scale];
    this.clear();
    this.context.imageSmoothingEnabled = scale < 1;
    this.context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    this.#fresh = true;
  }

  /** Take the background from the image's border, and a contrasting ink. */
  learnColours() {
    const { width, height } = this.canvas;
    const border = [[0, 0, width, 1], [0, height - 1, width, 1], [0, 0, 1, height], [width - 1, 0, 1, height]];
    const sums = [0, 0, 0, 0];
    for (const [x, y, w, h] of border) {
      this.context.getImageData(x, y, w, h).data.forEach((value, index) => { sums[index % 4] += value; });
    }
    const pixels = 2 * (width + height);
    const [red, green, blue] = sums.map((sum) => Math.round(sum / pixels));
    this.ground = `rgb(${red} ${green} ${blue})`;
    this.ink = red + green + blue < 3 * 128 ? "#ffffff" : "#000000";
  }

  /** @returns {Promise<Blob>} the drawing as a PNG */
  blob() {
    return new Promise((resolve, reject) => {
      this.canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the canvas gives no PNG"))));
    });
  }

  /** @param {{ x: number, y: number } | undefined} from @param {PointerEvent} event @returns {{ x: number, y: number }} */
  #line(from, event) {
    const box = this.canvas.getBoundingClientRect();
    const to = {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
    const { context } = this;
    context.strokeStyle = this.ink;
    context.lineWidth = PEN * Math.max(this.canvas.width, this.canvas.height);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from?.x ?? to.x, from?.y ?? to.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    return to;
  }
}
