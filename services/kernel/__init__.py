"""What all services share: the log, the one processing loop, delivery, serving, settings and telemetry.

The kernel imports no service and knows no business rule.
"""
