"""The paper's protocol: metrics, baselines, tables."""
