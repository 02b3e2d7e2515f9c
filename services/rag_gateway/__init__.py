"""The gateway: a question in; a composed context and an answer with citations and freshness out.

Owns: the composition of contexts, the prompt, the check of citations, the HTTP edge and its page.
Consumes: `conversations` (its own turns, for history) and `erasures`.
Produces: `conversations`, `erasures.done`.
Stores: gateway_turns, the read model of conversations.
Answers: RagGatewayService, and an OpenAI-compatible HTTP API.
Needs, over gRPC: profile, embedder and identity_graph; the page also needs feedback.
"""
