"""The knowledge base: documents and rows, made searchable by meaning and by words a moment after they change.

Consumes `documents` and `changes` (the tables that the settings name), and `erasures`. Produces `embedder.jobs`,
`knowledge.indexed` and `erasures.done`. Stores documents, chunks, full-text index, vectors and retry state in tables
`knowledge_*`. Answers EmbedderService.
"""
