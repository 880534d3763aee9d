"""Settings of an rq worker, which imports them before it forks: each job is spared an import."""

import google.cloud.bigquery

import jobs

__all__ = ["google", "jobs"]
