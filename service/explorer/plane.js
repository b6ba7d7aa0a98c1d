/** The map's plane in the latent space: latents to places on it, and back. */

/**
 * The answer of GET /models/{name}/map.
 * @typedef {object} LatentMap
 * @property {number[]} mean [d]
 * @property {[number[], number[]]} components [2][d], orthonormal
 * @property {[number, number]} variance explained by each component
 * @property {[number, number][]} points [n]
 * @property {number[] | null} labels [n]
 * @property {string[] | null} label_names
 * @property {unknown[]} [latents] [n][*latent]
 * @property {{ height: number, width: number, columns: number }} thumbnails
 */

import { flat } from "./model.js";

const REACH = 1.5; // radius in which an image influences the decoded latents, in mean spacings of the points

export class Plane {
  /** @param {LatentMap} map */
  constructor({ mean, components, points, latents }) {
    this.mean = mean;
    this.components = components;
    this.points = points;
    const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
    this.bounds = {
      left: Math.min(...xs),
      right: Math.max(...xs),
      bottom: Math.min(...ys),
      top: Math.max(...ys),
    };
    const { left, right, bottom, top } = this.bounds;
    this.spacing = Math.sqrt(((right - left) * (top - bottom)) / points.length) || 1;
    // The part of each image's latents that the plane does not show.
    this.rests = latents?.map((each, index) => {
      const place = this.#flat(points[index]);
      return flat([each]).map((number, dimension) => number - place[dimension]);
    });
  }

  /** @param {number[]} latents @returns {[number, number]} the nearest place */
  place(latents) {
    const [x, y] = this.components.map((component) =>
      component.reduce((sum, weight, index) => sum + weight * (latents[index] - this.mean[index]), 0));
    return [x, y];
  }

  /**
   * The latents of a place. The plane alone decodes to a blurred average, so images near the place add their
   * offset from the plane, weighted so that the result is continuous.
   * @param {[number, number]} place
   * @returns {number[]}
   */
  latents(place) {
    const found = this.#flat(place);
    if (!this.rests) return found;
    const squares = this.points.map(([x, y]) => (x - place[0]) ** 2 + (y - place[1]) ** 2);
    const nearest = Math.min(...squares);
    const width = 2 * (REACH * this.spacing / 4) ** 2;
    const weights = squares.map((square) => Math.exp((nearest - square) / width));
    const sum = weights.reduce((a, b) => a + b);
    weights.forEach((weight, index) => {
      if (weight < 1e-4) return;
      this.rests?.[index].forEach((rest, dimension) => { found[dimension] += (weight / sum) * rest; });
    });
    return found;
  }

  /** The image nearest to a place. @param {[number, number]} place @returns {number} its index */
  nearest([x, y]) {
    let [best, least] = [0, Infinity];
    this.points.forEach((point, index) => {
      const square = (point[0] - x) ** 2 + (point[1] - y) ** 2;
      if (square < least) [best, least] = [index, square];
    });
    return best;
  }

  /** @param {[number, number]} place @returns {number[]} */
  #flat([x, y]) {
    return this.mean.map((number, index) => number + x * this.components[0][index] + y * this.components[1][index]);
  }
}
