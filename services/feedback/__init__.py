"""Feedback: whether the answers are any good.

Owns: the meeting of turns, ratings and classifications; KPIs; the lake.
Consumes: `conversations`, `ratings`, `feedback.classified`, `erasures`; between its own groups `feedback.touched`.
Produces: `ratings` and `conversations` (imports), `feedback.classified`, `kpis`, `erasures.done`.
Stores: one row a turn, a rater's rating and a classification; the observation of each answer; the windows and KPIs.
Answers: `headwater.feedback.v1.FeedbackService`.

In a cluster, too, the stores are in the database of the worker's own folder, and there must be ONE worker: two would
each know a part of the answers, and publish KPIs of it. Why, and what would lift it, is told in
docs/decisions/0009-feedback-is-one-worker.md.
"""
