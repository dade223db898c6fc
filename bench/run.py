"""Everything, one after the other, in one table."""

import bulk
import fanout
import functions
import latency
import watch
import writer
import writers
from side_by_side import parser, run

run(
    parser(__doc__).parse_args(),
    writers.measure,
    functions.measure,
    latency.measure,
    bulk.measure,
    watch.measure,
    writer.measure,
    fanout.measure,
)
