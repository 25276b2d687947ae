"""The ServerApp: one job per Flower run, described by a file that the command line wrote."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .jobs import JOB_KEY, read_job, run_job

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's config names."""
    run_job(read_job(str(context.run_config[JOB_KEY])), grid)
