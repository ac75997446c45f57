// What the network's pages have beyond HTML and the console's script.
"use strict";
