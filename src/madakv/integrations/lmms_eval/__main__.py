"""`python -m madakv.integrations.lmms_eval` prints the folder that lmms-eval's `--include_path` takes."""

from madakv.integrations.lmms_eval import tasks_folder

print(tasks_folder())
