"""Ingest: takes what changes in source systems, and acknowledges it once it is in the log.

Owns: the decoders of replicators' formats, watched folders.
Consumes: pushes over gRPC and HTTP; files of watched folders.
Produces: `changes`, `documents`, and `dead_letters` for what cannot be decoded.
Stores: what it knows of the files of watched folders (`ingest_folders`, `ingest_files`, `ingest_documents`).
Answers: IngestService (Push, PushRaw, PutDocument).
"""
