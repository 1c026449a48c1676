"""The settings that docs/shards.md names for public manifests, on rows of the layout in which these are handed out."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.source.manifest import ReadOptions, open_manifest
from trainer.config.loader import load_config

DOCUMENT = Path(__file__).parents[3] / "docs" / "shards.md"
Row = tuple[str, str, str | None, float | None, float | None]  # id, video, caption, start, end
SAMPLES: dict[str, tuple[str, str, list[Row]]] = {
    "OpenVid-1M": (
        "OpenVid-1M.csv",
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
        'a_0to217.mp4,"A man, talking.",4.61,3.2,0.99,static,217,30.0,7.23\n',
        [("a_0to217.mp4", "a_0to217.mp4", "A man, talking.", None, None)],
    ),
    "Panda-70M": (
        "panda70m_training_2m.csv",
        "videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection\n"
        "--c,https://host/watch?v=--c,\"[['0:00:16.300', '0:00:32.566'], ['0:01:00.000', '1:01:05']]\","
        '"[""It\'s a dog"", \'a \\\'cat\\\'\']","[0.4, 0.5]","[\'desirable\', \'0_low\']","[[], []]"\n',
        [
            ("--c.mp4@16.3-32.566", "--c.mp4", "It's a dog", 16.3, 32.566),
            ("--c.mp4@60-3665", "--c.mp4", "a 'cat'", 60.0, 3665.0),
        ],
    ),
    "Koala-36M": (
        "Koala_36M_1.csv",
        "videoID,url,timestamp,caption,clarity_score\n"
        "abc_0,https://host/watch?v=abc,\"['0:00:05.005', '0:00:11.611']\",a long caption,0.9\n",
        [("abc_0.mp4@5.005-11.611", "abc_0.mp4", "a long caption", 5.005, 11.611)],
    ),
    "InternVid": (
        "InternVid-10M-flt.jsonl",
        '{"YoutubeID": "4R", "Start_timestamp": "00:03:10.567", "End_timestamp": "00:03:15.120", "Caption": "a bag", '
        '"Aesthetic_Score": 4.29, "UMT_Score": null}\n',
        [("4R.mp4@190.567-195.12", "4R.mp4", "a bag", 190.567, 195.12)],
    ),
    "WebVid": (
        "results_10M_val.csv",
        "videoid,contentUrl,duration,page_dir,name\n21179416,https://host/a.mp4,PT00H00M11S,006001_006050,A forest\n",
        [("videos/006001_006050/21179416.mp4", "videos/006001_006050/21179416.mp4", "A forest", None, None)],
    ),
    "MiraData": (
        "miradata.csv",
        "index,video_id,start_frame,end_frame,short_caption,dense_caption,fps,start_timestep,end_timestep\n"
        "12_3-0,vid,100,200,short,dense,25,0:00:04,0:00:08\n",
        [("vid.mp4@4-8", "vid.mp4", "dense", 4.0, 8.0)],
    ),
    "MSR-VTT": (
        "MSRVTT_JSFUSION_test.csv",
        "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something\n",
        [("ret0", "video9770.mp4", "a person is connecting something", None, None)],
    ),
    "ActivityNet": (
        "anet.jsonl",
        '{"video": "v_Q", "duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60]], "sentences": ["A", " B"]}\n',
        [
            ("v_Q.mp4@0.83-19.86", "v_Q.mp4", "A", 0.83, 19.86),
            ("v_Q.mp4@17.37-60", "v_Q.mp4", "B", 17.37, 60.0),
        ],
    ),
    "HowTo100M": (
        "HowTo100M_v1.csv",
        "video_id,category_1,category_2,rank,task_id\nnVb,Cars & Other Vehicles,Motorcycles,27,52907\n",
        [("nVb.mp4", "nVb.mp4", None, None, None)],
    ),
    "Kinetics": (
        "validate.csv",
        "label,youtube_id,time_start,time_end,split\nmaking tea,--0,10,20,validate\n",
        [("--0_000010_000020.mp4", "--0_000010_000020.mp4", "making tea", None, None)],
    ),
    "Open-Sora": (
        "opensora.csv",
        "path,text,num_frames,height,width,aspect_ratio,resolution,fps\n/data/a.mp4,a cat,120,720,1280,0.5,921600,24\n",
        [("/data/a.mp4", "/data/a.mp4", "a cat", None, None)],
    ),
    "VATEX": (
        "vatex.json",
        '[{"videoID": "P_000122_000132", "enCap": ["a man", "a boy"], "chCap": ["x", "y"]}]',
        [
            ("P_000122_000132.mp4#1", "P_000122_000132.mp4", "a man", None, None),
            ("P_000122_000132.mp4#2", "P_000122_000132.mp4", "a boy", None, None),
        ],
    ),
    "HD-VILA-100M": (
        "hdvila.jsonl",
        '{"video_id": "aa", "url": "https://host/watch?v=aa", "clip": [{"clip_id": "aa.1.mp4", '
        '"span": ["00:00:17.759", "00:00:23.279"]}, {"clip_id": "aa.2.mp4", "span": ["00:00:30", "00:00:33"]}]}\n',
        [("aa.1.mp4", "aa.mp4", None, 17.759, 23.279), ("aa.2.mp4", "aa.mp4", None, 30.0, 33.0)],
    ),
}


def documented() -> dict[str, str]:
    """Manifest -> settings, from the document's table."""
    text = DOCUMENT.read_text()
    table = text[text.index("| manifest | settings |") :].split("\n\n")[0].splitlines()[2:]
    return {cells[1].strip(): cells[2].strip() for cells in (re.split(r"(?<!\\)\|", line) for line in table)}


def test_the_document_names_these_manifests() -> None:
    assert list(documented()) == list(SAMPLES)


@pytest.mark.parametrize("manifest", SAMPLES)
def test_a_public_manifest_is_read_with_the_settings_of_the_document(manifest: str, tmp_path: Path) -> None:
    name, content, expected = SAMPLES[manifest]
    path = tmp_path / name
    path.write_text(content)
    settings, *before = [words.replace("\\|", "|") for words in re.findall(r"`(.*?)`", documented()[manifest])] or [""]
    if before:
        if shutil.which("jq") is None:
            pytest.skip("jq is not installed")
        subprocess.run(before[0], shell=True, check=True, cwd=tmp_path, timeout=60)
        path = tmp_path / before[0].split()[-1]
    words = [f"source={path}", "output=unused", *shlex.split(settings)]
    config = load_config(ShardsConfig, [], words)
    opened = open_manifest(path, ReadOptions(columns=config.columns, needs_caption=config.caption.required))
    rows = [row for batch in opened.batches for row in batch.to_pylist()]
    assert [tuple(row[key] for key in ("id", "video", "caption", "start", "end")) for row in rows] == expected
