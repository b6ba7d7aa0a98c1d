/** The visible part of the plane: places to pixels and back, zoom and pan. */

const FARTHEST = 0.8;
const NEAREST = 40;
const MARGIN = 0.06; // around the whole map, as a share of its size

export class Camera {
  zoom = 1;
  /** @type {[number, number]} the place in the middle */
  centre;

  /** @param {{ left: number, right: number, bottom: number, top: number }} bounds of all places */
  constructor(bounds) {
    this.bounds = bounds;
    this.size = { width: 1, height: 1 };
    this.centre = this.#middle();
  }

  /** The whole map. */
  reset() {
    this.zoom = 1;
    this.centre = this.#middle();
  }

  /** Pixels per unit of the plane, the same for both axes to preserve distances. */
  get scale() {
    const { left, right, bottom, top } = this.bounds;
    const room = 1 - 2 * MARGIN;
    const { width, height } = this.size;
    return this.zoom * room * Math.min(width / (right - left || 1), height / (top - bottom || 1));
  }

  /** @param {[number, number]} place @returns {[number, number]} pixel */
  pixel([x, y]) {
    const { scale, centre, size } = this;
    return [size.width / 2 + (x - centre[0]) * scale, size.height / 2 - (y - centre[1]) * scale];
  }

  /** @param {[number, number]} pixel @returns {[number, number]} place */
  place([x, y]) {
    const { scale, centre, size } = this;
    return [centre[0] + (x - size.width / 2) / scale, centre[1] - (y - size.height / 2) / scale];
  }

  /** @param {number} dx pixels that the map moves by @param {number} dy */
  pan(dx, dy) {
    const { left, right, bottom, top } = this.bounds;
    const [x, y] = this.centre;
    this.centre = [within(left, x - dx / this.scale, right), within(bottom, y + dy / this.scale, top)];
  }

  /** Zoom in or out around a pixel. @param {number} factor @param {[number, number]} pixel */
  magnify(factor, pixel) {
    const before = this.place(pixel);
    this.zoom = within(FARTHEST, this.zoom * factor, NEAREST);
    const [x, y] = this.pixel(before);
    this.pan(pixel[0] - x, pixel[1] - y);
  }

  /** Pan just far enough to show a place. @param {[number, number]} place */
  follow(place) {
    const [x, y] = this.pixel(place);
    const { width, height } = this.size;
    const edge = 0.08 * Math.min(width, height);
    this.pan(within(edge, x, width - edge) - x, within(edge, y, height - edge) - y);
  }

  /** @returns {[number, number]} */
  #middle() {
    const { left, right, bottom, top } = this.bounds;
    return [(left + right) / 2, (bottom + top) / 2];
  }
}

/** @param {number} least @param {number} value @param {number} most */
const within = (least, value, most) => Math.min(most, Math.max(least, value));
