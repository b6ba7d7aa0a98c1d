/** The state that the panels of one model share. */

import { send } from "./api.js";

/** @typedef {import("./api.js").Call} Call */
/** @typedef {import("./model.js").Model} Model */

/**
 * An encoded image.
 * @typedef {object} Encoded
 * @property {string} url of the image
 * @property {number[]} latents flat
 */

/** An observable value. @template T */
export class Shared {
  /** @type {T | undefined} */
  value;
  /** @type {((value: T) => void)[]} */
  #watchers = [];

  /** @param {T} value */
  set(value) {
    this.value = value;
    for (const watcher of this.#watchers) watcher(value);
  }

  /** @param {(value: T) => void} watcher */
  watch(watcher) {
    this.#watchers.push(watcher);
  }
}

export class Session {
  /** @type {Shared<Encoded>} the image that the panels describe, traverse and show on the map */
  picture = new Shared();
  /** @type {Shared<Encoded[]>} the current samples */
  samples = new Shared();
  /** @type {Shared<Blob>} an image to describe next */
  chosen = new Shared();

  /** @param {Model} model @param {AbortSignal} signal */
  constructor(model, signal) {
    this.model = model;
    this.signal = signal;
  }

  /** Address a call to this model. @param {Call} call @returns {Call} */
  to(call) {
    return { ...call, query: { model: this.model.reference, ...call.query } };
  }

  /** @param {Call} call to this model */
  async json(call) {
    return (await send(call, this.signal)).json();
  }

  /** @param {Call} call to this model */
  async blob(call) {
    return (await send(call, this.signal)).blob();
  }
}
