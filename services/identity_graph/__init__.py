"""Who is who: which records of all sources are the same person, and why.

Owns:     the graph of records and identifiers, profile ids, and the decision what links, merges, splits or is refused.
Consumes: `changes` (group identity-graph), `erasures` and `erasures.done` (group identity-erasures).
Produces: `identity.assignments`, `identity.decisions`, `erasures`, `erasures.done`.
Stores:   records with their identifiers (tables identity_…), and the state of erasures.
Answers:  IdentityGraphService.
"""
