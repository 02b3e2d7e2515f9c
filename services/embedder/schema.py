"""The tables of the knowledge base in the installation's SQLite database.

A document's chunks hang on its row; the full-text index follows them by triggers, so that the two cannot differ. A
vector hangs on the hash of what was embedded, so that a stale one cannot be found, and equal words are embedded once.
Who may find a document is one number, its visibility: the same filter for words and for vectors.
"""

COMPONENT = "knowledge"

SCHEMA = (
    """CREATE TABLE knowledge_visibility (
         id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, source TEXT NOT NULL, access TEXT NOT NULL,
         UNIQUE (tenant, source, access))""",
    """CREATE TABLE knowledge_documents (
         id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, document_id TEXT NOT NULL, source TEXT NOT NULL,
         entity TEXT NOT NULL, partition INTEGER NOT NULL, position TEXT NOT NULL, occurred_ms INTEGER NOT NULL,
         wanted TEXT NOT NULL, version TEXT NOT NULL, name TEXT NOT NULL, uri TEXT NOT NULL, metadata TEXT NOT NULL,
         live TEXT NOT NULL, access TEXT NOT NULL, visibility INTEGER NOT NULL, shown_ms INTEGER NOT NULL,
         "row" TEXT NOT NULL, known_at TEXT NOT NULL, chunks INTEGER NOT NULL DEFAULT 0,
         title TEXT NOT NULL DEFAULT '', text TEXT NOT NULL DEFAULT '', UNIQUE (tenant, document_id))""",
    """CREATE INDEX knowledge_documents_by_entity ON knowledge_documents (tenant, source, entity, partition)
       WHERE entity <> ''""",
    """CREATE TABLE knowledge_fences (
         tenant TEXT, document_id TEXT, position TEXT NOT NULL, PRIMARY KEY (tenant, document_id)) WITHOUT ROWID""",
    """CREATE TABLE knowledge_truncations (
         partition INTEGER, tenant TEXT, source TEXT, entity TEXT, position TEXT NOT NULL,
         PRIMARY KEY (partition, tenant, source, entity)) WITHOUT ROWID""",
    """CREATE TABLE knowledge_erasures (
         digest TEXT PRIMARY KEY, position TEXT NOT NULL, at_ms INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE knowledge_chunks (
         id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, ordinal INTEGER NOT NULL,
         start INTEGER NOT NULL, "end" INTEGER NOT NULL, text TEXT NOT NULL, context TEXT NOT NULL,
         headings TEXT NOT NULL, label TEXT NOT NULL, hash BLOB NOT NULL)""",
    "CREATE INDEX knowledge_chunks_by_document ON knowledge_chunks (document, ordinal)",
    "CREATE INDEX knowledge_chunks_by_hash ON knowledge_chunks (hash)",
    """CREATE VIRTUAL TABLE knowledge_words USING fts5(
         context, text, content='knowledge_chunks', content_rowid='id',
         tokenize='porter unicode61 remove_diacritics 2')""",
    """CREATE TRIGGER knowledge_chunks_added AFTER INSERT ON knowledge_chunks BEGIN
         INSERT INTO knowledge_words (rowid, context, text) VALUES (new.id, new.context, new.text); END""",
    """CREATE TRIGGER knowledge_chunks_removed AFTER DELETE ON knowledge_chunks BEGIN
         INSERT INTO knowledge_words (knowledge_words, rowid, context, text)
         VALUES ('delete', old.id, old.context, old.text); END""",
    """CREATE TABLE knowledge_embeddings (
         model_id TEXT NOT NULL, hash BLOB NOT NULL, vector BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX knowledge_embeddings_by_hash ON knowledge_embeddings (hash, model_id)",
    # Vectors of a document that is not finished yet: whose they are, so that they go when it goes.
    """CREATE TABLE knowledge_progress (
         document INTEGER, hash BLOB, PRIMARY KEY (document, hash)) WITHOUT ROWID""",
    "CREATE INDEX knowledge_progress_by_hash ON knowledge_progress (hash)",
    # Work that is not done, or given up. `origin` is the oldest record of the document that cannot be found yet, and
    # `since_ms` its event time.
    """CREATE TABLE knowledge_jobs (
         document INTEGER PRIMARY KEY, version TEXT NOT NULL, provider TEXT NOT NULL, lane INTEGER NOT NULL,
         size INTEGER NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, due_at REAL NOT NULL,
         last_error TEXT NOT NULL, content BLOB, media_type TEXT NOT NULL, topic TEXT NOT NULL,
         partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, origin INTEGER NOT NULL, tenant TEXT NOT NULL,
         source TEXT NOT NULL, since_ms INTEGER NOT NULL)""",
    "CREATE INDEX knowledge_jobs_due ON knowledge_jobs (lane, due_at) WHERE state <> 'parked'",
    "CREATE INDEX knowledge_jobs_by_place ON knowledge_jobs (topic, partition, origin) WHERE state <> 'parked'",
    "CREATE INDEX knowledge_jobs_by_source ON knowledge_jobs (tenant, source, since_ms) WHERE state <> 'parked'",
)
DERIVED = (  # everything that a rebuild makes again; vectors stay, they are named by what they are of
    "knowledge_documents",
    "knowledge_fences",
    "knowledge_truncations",
    "knowledge_chunks",
    "knowledge_progress",
    "knowledge_jobs",
    "knowledge_visibility",
)
