// The pace: when to ask again, when to stop, and what a page may say of its own freshness.

import { Lost } from "./api.js";

const SLOWEST_MS = 60_000;

/**
 * Ask again and again: every `seconds` (and a little at random), slower while the server does not answer, never in a
 * hidden tab, never two at once.
 */
export class Poll {
  /**
   * @param {(signal: AbortSignal) => Promise<number>} load asks, draws, and returns the moment of the data (Unix s)
   * @param {number} seconds
   * @param {(poll: Poll) => void} tell is called when something about the freshness changed
   */
  constructor(load, seconds, tell) {
    this.load = load;
    this.periodMs = seconds * 1000;
    this.tell = tell;
    this.failures = 0;
    this.paused = false;
    /** The moment of the data shown (Unix s by the server), null before the first answer. */
    this.at = null;
    /** When it came (ms, by a clock that never jumps). */
    this.cameAt = null;
    this.timer = null;
    this.flight = null;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
  }

  get lost() {
    return this.failures > 0;
  }

  start() {
    this.stop();
    if (!this.paused && !document.hidden) this.ask();
  }

  stop() {
    clearTimeout(this.timer);
    this.flight?.abort();
    this.flight = null;
  }

  pause(paused) {
    this.paused = paused;
    if (paused) this.stop();
    else this.start();
    this.tell(this);
  }

  /** Ask at once, a paused page too: what is to be seen has changed. */
  now() {
    this.stop();
    this.ask();
  }

  async ask() {
    const flight = new AbortController();
    this.flight = flight;
    try {
      const at = await this.load(flight.signal);
      this.at = at;
      this.cameAt = performance.now();
      this.failures = 0;
    } catch (error) {
      if (flight.signal.aborted) return;
      this.failures += 1;
      if (!(error instanceof Lost)) console.error(error);
    }
    if (this.flight !== flight) return;
    this.flight = null;
    this.tell(this);
    if (this.paused) return;
    const wait = Math.min(this.periodMs * 2 ** Math.max(0, this.failures - 1), SLOWEST_MS);
    this.timer = setTimeout(() => this.ask(), wait * (0.95 + 0.1 * Math.random()));
  }
}
