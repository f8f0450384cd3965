// The pages on Slurm: drawn anew from what the server would send for them now.

import { live, momentOf, redraw } from "./frame.js";

live(async (signal) => momentOf(await redraw(signal)));
