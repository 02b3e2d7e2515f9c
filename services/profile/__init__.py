"""The unified customer profile: one document per person, made of the rows of every source.

Owns:     which row of a record is current, how rows become fields, and who may read which field.
Consumes: `changes` and `identity.assignments` (group profile-rows), `profile.touched` (group profile-fold),
          `erasures` (group profile-erasure).
Produces: `profile.touched`, `profiles`, `erasures.done`.
Stores:   rows, documents, a lookup of identifiers, and the digests of erased records.
Answers:  ProfileService.
"""
