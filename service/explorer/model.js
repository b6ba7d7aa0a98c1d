/** What the page must know of a model. */

/**
 * @typedef {object} Model
 * @property {string} reference name@version
 * @property {number} height of its images
 * @property {number} width
 * @property {number} channels 1 or 3
 * @property {number[]} shape of the latents of one image
 * @property {number} size how many numbers those are
 * @property {number[]} kl nats that each number carries on average; empty if nobody measured it
 * @property {string[]} labels names of the classes; empty without any
 * @property {string[]} priors what it samples from, where there is a choice; the usual one first
 * @property {boolean} scored whether it says how likely an image is
 * @property {boolean} mapped whether it brings a map
 * @property {number} rows how many images or latents one request may have
 */

/** @param {any} answer of GET /models/{name}/versions/{version} @returns {Model} */
export function describe({ model, manifest, limits }) {
  const { height, width, channels } = manifest.image;
  return {
    reference: model,
    height,
    width,
    channels,
    shape: manifest.latent.shape,
    size: manifest.latent.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1),
    kl: (manifest.latent.kl ?? []).flat(Infinity),
    labels: manifest.labels ?? [],
    priors: priorsOf(manifest),
    scored: Boolean(manifest.likelihood),
    mapped: Boolean(manifest.map),
    rows: Math.min(limits.max_images, limits.max_samples),
  };
}

/** What may be asked for besides the usual, which comes first. @param {any} manifest @returns {string[]} */
function priorsOf({ prior, files }) {
  if (prior?.kind === "gmm") return ["mixture", "normal"];
  if (prior?.kind !== "flow") return [];
  return files["prior.npz"] ? ["flow", "mixture", "normal"] : ["flow", "normal"];
}

/** The `count` latent dimensions that carry most, the strongest first. @param {Model} model @param {number} count */
export function strongest({ size, kl }, count) {
  const order = Array.from({ length: size }, (_, index) => index);
  if (kl.length === size) order.sort((a, b) => kl[b] - kl[a]);
  return order.slice(0, count);
}

/**
 * Flat numbers as the nested lists that the service takes: four digits are more than anyone sees.
 * @param {ArrayLike<number>} numbers
 * @param {number[]} shape
 * @returns {unknown}
 */
export function nested(numbers, shape) {
  /** @type {unknown[]} */
  let lists = Array.from(numbers, (number) => Math.round(number * 1e4) / 1e4);
  for (const length of shape.slice(1).reverse()) {
    lists = Array.from({ length: lists.length / length }, (_, row) => lists.slice(row * length, (row + 1) * length));
  }
  return lists;
}

/** @param {unknown} lists nested as the service answers them @returns {number[]} flat */
export const flat = (lists) => /** @type {number[]} */ (/** @type {unknown[]} */ (lists).flat(Infinity));
