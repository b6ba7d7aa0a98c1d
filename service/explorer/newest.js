/** One request in flight for each control; what comes meanwhile replaces what waits, so the newest wins. */

import { Problem } from "./api.js";
import { trouble } from "./dom.js";

/**
 * @template {unknown[]} A
 * @param {ParentNode} panel where a failure is told
 * @param {AbortSignal} signal after which nothing is done any more
 * @param {(...wanted: A) => Promise<void>} work
 * @returns {(...wanted: A) => Promise<void>} resolves when nothing waits any more
 */
export function newestWins(panel, signal, work) {
  /** @type {A | undefined} */
  let waiting;
  let running = false;
  return async (...wanted) => {
    waiting = wanted;
    if (running) return;
    running = true;
    while (waiting && !signal.aborted) {
      const next = waiting;
      waiting = undefined;
      trouble(panel, "");
      try {
        await work(...next);
      } catch (error) {
        if (signal.aborted) break;
        if (!(error instanceof Problem)) throw error;
        trouble(panel, error.message);
      }
    }
    running = false;
  };
}
