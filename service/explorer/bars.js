/** Latents as bars to the left and to the right of a line. */

import { strongest } from "./model.js";

const MOST = 64; // bars; more would be unreadable
const REACH = 3; // nearly all posterior means lie within three standard deviations of the prior

export class Bars {
  /** @param {SVGSVGElement} svg @param {import("./model.js").Model} model */
  constructor(svg, model) {
    this.shown = strongest(model, MOST).sort((a, b) => a - b);
    svg.setAttribute("viewBox", `${-REACH} 0 ${2 * REACH} ${this.shown.length}`);
    this.bars = this.shown.map((_, row) => draw("rect", { y: row + 0.15, height: 0.7 }));
    svg.replaceChildren(draw("line", { x1: 0, x2: 0, y1: 0, y2: this.shown.length }), ...this.bars);
  }

  /** @param {ArrayLike<number>} numbers all latents of one picture */
  show(numbers) {
    this.bars.forEach((bar, row) => {
      const number = Math.max(-REACH, Math.min(REACH, numbers[this.shown[row]]));
      bar.setAttribute("x", String(Math.min(0, number)));
      bar.setAttribute("width", String(Math.abs(number)));
    });
  }
}

/** @param {"rect" | "line"} tag @param {Record<string, number>} attributes */
function draw(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}
