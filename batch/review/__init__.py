"""The nightly report: what a night did to the rows, for those who answer for them.

    lake ──► audience (some viewers who played since the reference generation knew them)
               └──► figures: each play of theirs asked of every arm; how far vectors drift; whose rows change how
                       └──► Review ──► <lake>/reports/<night>.json ──► page: one HTML file with its plots inside

The reference generation knows nothing of the plays that it is asked about: it is the one in force, or, where that has seen them or
there is none, the candidate that was trained without them.
"""
