/** A canvas to draw on with a finger, pen or mouse. It also shows images from elsewhere. */

import { context } from "./pictures.js";

const SIDE = 280; // the longer side, in canvas pixels
const PEN = 0.075; // share of the longer side: a stroke of two pixels in an image of 28
const QUALITY = 0.95; // of a JPEG

export class Sketch {
  ground = "#000000";
  ink = "#ffffff";
  picking = false; // the next press takes the ink from its place instead of drawing
  #fresh = true; // the next stroke starts a new drawing

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./model.js").Model} model
   * @param {AbortSignal} signal
   * @param {() => void} changed called for every part of a stroke
   * @param {() => void} picked called when the ink was taken from the canvas
   */
  constructor(canvas, model, signal, changed, picked) {
    // A whole number, so that all pixels of the model's images have one size.
    const scale = Math.max(1, Math.round(SIDE / Math.max(model.width, model.height)));
    canvas.width = model.width * scale;
    canvas.height = model.height * scale;
    this.canvas = canvas;
    this.model = model;
    this.context = context(canvas);
    /** @type {{ x: number, y: number } | undefined} */
    let last;
    const draw = (/** @type {PointerEvent} */ event) => {
      for (const each of event.getCoalescedEvents?.() ?? []) last = this.#line(last, each);
      last = this.#line(last, event);
      changed();
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (this.picking) {
        const { x, y } = this.#place(event);
        this.ink = hex(this.#mean([Math.floor(x), Math.floor(y), 1, 1]));
        this.picking = false;
        picked();
        return;
      }
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
   * Show an image as the service fits it to the model's size. The next stroke paints on it if it is in colour;
   * it replaces a grey one.
   * @param {ImageBitmap} picture
   */
  show(picture) {
    const { context, model } = this;
    const { width, height } = this.canvas;
    const scales = [width / picture.width, height / picture.height];
    const scale = model.fit === "cover" ? Math.max(...scales) : Math.min(...scales);
    const [w, h] = model.fit === "stretch" ? [width, height] : [picture.width * scale, picture.height * scale];
    const [x, y, across, down] = [(width - w) / 2, (height - h) / 2, w, h].map(Math.round);
    context.fillStyle = "#000000"; // around the image
    context.fillRect(0, 0, width, height);
    context.fillStyle = "#ffffff"; // below transparent pixels
    context.fillRect(x, y, across, down);
    context.imageSmoothingEnabled = !Number.isInteger(scale);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, x, y, across, down);
    this.#fresh = model.channels === 1;
  }

  /** Take the background from the image's border. Take the ink from the middle; in a grey image it is the contrast. */
  learnColours() {
    const { width, height } = this.canvas;
    const border = [[0, 0, width, 1], [0, height - 1, width, 1], [0, 0, 1, height], [width - 1, 0, 1, height]];
    const middle = [(7 * width) / 16, (7 * height) / 16, width / 8, height / 8].map(Math.floor);
    const ground = this.#mean(...border);
    this.ground = hex(ground);
    this.ink = hex(this.model.channels === 3 ? this.#mean(middle) : ground.map((level) => (level < 128 ? 255 : 0)));
  }

  /** @returns {Promise<Blob>} the drawing as a PNG; in colour as a JPEG, because the recipes contain it */
  blob() {
    const type = this.model.channels === 3 ? "image/jpeg" : "image/png";
    return new Promise((resolve, reject) => {
      this.canvas.toBlob(
        (blob) => (blob ? resolve(blob) : reject(new Error(`the canvas gives no ${type}`))), type, QUALITY,
      );
    });
  }

  /** The mean of areas. @param {...number[]} areas x, y, width and height of each @returns {number[]} red, green, blue */
  #mean(...areas) {
    const sums = [0, 0, 0, 0];
    let pixels = 0;
    for (const [x, y, w, h] of areas) {
      this.context.getImageData(x, y, w, h).data.forEach((value, index) => { sums[index % 4] += value; });
      pixels += w * h;
    }
    return sums.slice(0, 3).map((sum) => Math.round(sum / pixels));
  }

  /** @param {PointerEvent} event @returns {{ x: number, y: number }} in canvas pixels */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  /** @param {{ x: number, y: number } | undefined} from @param {PointerEvent} event @returns {{ x: number, y: number }} */
  #line(from, event) {
    const to = this.#place(event);
    const { context } = this;
    context.strokeStyle = this.ink;
    context.lineWidth = PEN * Math.max(this.canvas.width, this.canvas.height);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from?.x ?? to.x, from?.y ?? to.y);
    context.lineTo(to.x + 0.01, to.y); // a line without length would not be drawn, and a tap is a dot
    context.stroke();
    return to;
  }
}

/** @param {number[]} levels red, green and blue @returns {string} as <input type="color"> takes it */
const hex = (levels) => `#${levels.map((level) => level.toString(16).padStart(2, "0")).join("")}`;
