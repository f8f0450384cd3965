// The page of a host: drawn anew from what the server would send for it now.

import { live, momentOf, redraw } from "./frame.js";

live(async (signal) => momentOf(await redraw(signal)));
