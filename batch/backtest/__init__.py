"""`nearline evaluate`: plays in time order, and before each one the row that every arm would have shown.

    events.parquet ──► plays ──► refits (train on what lies before, ahead of the replay, in a thread of its own)
                         │          │
                         └──► replay: before a play, every arm is asked for the viewer's row; after it, every arm is told
                                    │
                                  arms ──► answers ──► measures ──► intervals ──► report

An arm is never given a play before it has answered, so it cannot know the future. What serves is what is evaluated: states are
merged by `viewers.state`, rows are made by `viewers.rewriter`, factors come from `batch.train`.
"""
