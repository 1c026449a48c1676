"""Hides what a GPU machine lacks. Python imports this file by itself wherever its folder is on PYTHONPATH."""

import sys

ABSENT = ("webdataset", "ray", "boto3", "botocore", "scenedetect", "cv2", "skvideo", "moto")
sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]  # None there makes an import fail
