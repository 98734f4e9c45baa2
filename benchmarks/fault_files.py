"""Step folders, paths, result files and CSVs: more of ``benchmarks.fault_table``'s rows."""

from benchmarks.fault_folders import AGAIN, ALL, REPORT, RESULT, RESUME
from benchmarks.fault_table import EMERGE, LOCALIZE, PATCH, STUDY, Row, says, train

_DONE = "done/results/patching"
_TEN = "run/step-000010"
STEPS = [
    *(
        Row(f"{what}, {how}", command, message, right, before)
        for what, before, message, right in (
            ("step-600 beside step-000600",
             f"copy('{_TEN}', 'run/step-000600'), copy('{_TEN}', 'run/step-600')",
             "step-600", None),
            ("step-10 instead of step-000010", f"move('{_TEN}', 'run/step-10')", "step-10", ""),
            ("a step of 20 digits", f"copy('{_TEN}', 'run/step-99999999999999999999')",
             "step-99999999999999999999", None),
            ("step-abc", f"copy('{_TEN}', 'run/step-abc')", "step-abc", ""),
            ("step--10", f"copy('{_TEN}', 'run/step--10')", "step--10", ""),
            ("step-1.5", f"copy('{_TEN}', 'run/step-1.5')", "step-1.5", ""),
            ("a file named step-000100", "write('run/step-000100')", "step-000100", ""),
            ("a link to itself named step-000100", "loop('run/step-000100')", "step-000100", ""),
            ("a pipe named step-000100", "fifo('run/step-000100')", "step-000100", ""),
            ("an empty step folder", "folder('run/step-000100')", "step-000100", None),
            ("a step of another shape",
             "copy('wide/step-000020', 'run/step-000020')", "shape|d_model|hidden|config", None),
            ("a step of another vocabulary", "key('run/step-000020/config.json', 'vocab_size', 50)",
             "vocab|shape", None),
            ("a step folder gone", f"remove('{_TEN}')", "step|10|000010", f"remove('{_TEN}')"),
        )
        for how, command in (("all steps patched", ALL), ("one planned", f"{ALL} --plan"))
        if how == "all steps patched" or "abc" in what or "pipe" in what
    ),
    Row("no steps at all", PATCH, "step|checkpoint", None,
        "[remove(f'run/step-0000{n}') for n in ('00', '10', '20', '30')]"),
    Row("a step folder given that is a copy", "interp-patch --ckpt run/step-000030 --sites z "
        "--facts 6", "", ""),
    Row("a step folder alone", "interp-patch --ckpt step-000030", "run.json|run folder", None,
        "copy('run/step-000030', 'step-000030')"),
    Row("two steps with the same weights", ALL, "same|identical", f"remove('{_TEN}'), copy("
        f"'run/step-000020', '{_TEN}')", f"remove('{_TEN}'), copy('run/step-000020', '{_TEN}')"),
    Row("localizing all of these", LOCALIZE.replace("--steps 30", ""), "step-abc", None,
        f"copy('{_TEN}', 'run/step-abc')"),
    Row("resuming beside step-abc", RESUME, "step-abc", None, f"copy('{_TEN}', 'run/step-abc')"),
]  # fmt: skip

PATHS = [
    *(
        Row(f"{what} as {flag}", f"{command} {flag} {path}", says(path), None, before)
        for what, path, before in (
            ("nothing", "nowhere", ""),
            ("a file", "curves.csv", ""),
            ("an empty folder", "hollow", "folder('hollow')"),
            ("a pipe", "pipe", "fifo('pipe')"),
            ("a link to itself", "ring", "loop('ring')"),
            ("a path below a file", "curves.csv/run", ""),
            ("a name of 300 letters", "n" * 300, ""),
        )
        for command, flag in (
            ("interp-patch", "--ckpt"),
            ("interp-analyse localization", "--ckpt"),
            (STUDY, "--ckpt"),
            ("interp-report --out r.html", "--results"),
            ("interp-analyse emergence", "--curves"),
        )
        if not (flag == "--curves" and path == "curves.csv")
    ),
    *(
        Row(f"{what} as the output of {command.split()[0]} {flag}", f"{command} {flag} {path}",
            says(path.partition("/")[0]), "" if path == "ring" else None, before)
        for what, path, before in (
            ("a pipe", "pipe", "fifo('pipe')"),
            ("a link to itself", "ring", "loop('ring')"),
            ("a path below a file", "prompts.csv/new", ""),
            ("a name of 300 letters", "n" * 300, ""),
        )
        for command, flag in (
            (PATCH, "--out"), (PATCH, "--report"), (LOCALIZE, "--out"), (LOCALIZE, "--report"),
            (EMERGE, "--out"), (STUDY, "--out"), (REPORT.partition(" --out")[0], "--out"),
            (train().replace("--out new ", ""), "--out"),
        )
    ),
    Row("a folder as a report", f"{PATCH} --report run", says("run"), None),
    Row("training into a folder with a population of somebody's", train(out="mine"),
        "mine|population", None, "copy('other/population.parquet', 'mine/population.parquet')"
        " if folder('mine') is None else 0"),
    Row("training into a folder with notes", train(out="mine"), "mine", "folder('mine')",
        "write('mine/notes.txt', 'dear diary')"),
]  # fmt: skip

RESULTS = [
    *(
        Row(f"a result {what}; {how}", command, message, right, before)
        for what, before, message in (
            ("of another length", f"cut({RESULT}, 0.6)", ".nc"),
            ("is empty", f"write({RESULT})", ".nc"),
            ("is garbage", f"garbage({RESULT})", ".nc"),
            ("is a pipe", f"fifo({RESULT})", ".nc"),
            ("is a folder", f"folder({RESULT})", ".nc"),
            ("has a flipped bit in its numbers", f"flip({RESULT}, 0.99, 6)", ".nc"),
            ("has a flipped bit in its header", f"flip({RESULT}, 0.02, 3)", ".nc"),
            ("is NaN", f"result_variable({RESULT}, 'patched', float('nan'))", ".nc"),
            ("is twice as large", f"result_variable({RESULT}, 'patched', 2.0)", ".nc"),
            ("lacks its clean run", f"result_variable({RESULT}, 'clean', None)", ".nc"),
            ("lacks what was patched", f"result_variable({RESULT}, 'patched', None)", ".nc"),
            ("lacks its request", f"result_attribute({RESULT}, 'request', None)", ".nc|request"),
            ("has a request of no JSON", f"result_attribute({RESULT}, 'request', '{{')",
             ".nc|request"),
            ("lacks what made it", f"result_attribute({RESULT}, 'made_by', None)", ".nc|made_by"),
            ("has no direction", f"result_attribute({RESULT}, 'direction', None)", ".nc|direction"),
            ("has an unknown site", f"result_attribute({RESULT}, 'site', 'zz')", ".nc|site"),
        )
        for how, command, right in (("patched again", AGAIN, ""), ("a report of it", REPORT, ""))
    ),
    Row("results of another run among a run's", REPORT, "run", "",
        "[copy(str(path), f'done/results/patching/{path.name}') for path in "
        "Path('other/results/patching').glob('*.nc')]"),
    Row("the results of another run alone", REPORT, "run", None,
        "remove('done/results'), copy('other/results', 'done/results')"),
    Row("results without their run", "interp-report --results patching --out r.html", "run",
        f"copy('{_DONE}', 'patching')", f"copy('{_DONE}', 'patching')"),
    Row("results of localization", "interp-report --results loc --out r.html", "damaged|patch",
        None, f"copy('{_DONE}', 'loc'), [result_attribute(str(p), 'site', None) for p in "
        "Path('loc').glob('*.nc')]"),
    Row("notes among results", REPORT, "notes", "", f"write('{_DONE}/notes.txt', 'n')"),
    Row("a result named after no step", REPORT, "step-x", "", f"write('{_DONE}/step-x.z.nc', 'n')"),
    Row("a pipe named as a result", REPORT, "step-000001", "",
        f"fifo('{_DONE}/step-000001.z.a.nc')"),
]  # fmt: skip

CURVES = [
    Row(f"curves: {what}", EMERGE, message, right, before)
    for what, message, right, before in (
        ("a byte order mark", "step", "", "write('curves.csv', b'\\xef\\xbb\\xbf' + "
         "Path('curves.csv').read_bytes())"),
        ("lines that end in CRLF", "step", "", "write('curves.csv', "
         "Path('curves.csv').read_bytes().replace(b'\\n', b'\\r\\n'))"),
        ("semicolons", "semicolons", None, "write('curves.csv', "
         "Path('curves.csv').read_text().replace(',', ';'))"),
        ("tabs", "tabs", None, "write('curves.csv', "
         "Path('curves.csv').read_text().replace(',', chr(9)))"),
        ("UTF-16", "curves.csv", "", "write('curves.csv', "
         "Path('curves.csv').read_text().encode('utf-16'))"),
        ("no column value", "value", None, "write('curves.csv', 'step,loss\\n0,1\\n')"),
        ("no column step", "step", None, "write('curves.csv', 'x,value\\n0,1\\n')"),
        ("no rows", "row", None, "write('curves.csv', 'step,value\\n')"),
        ("an empty file", "curves.csv", None, "write('curves.csv')"),
        ("zero bytes within", "curves.csv", None, "write('curves.csv', bytes(300))"),
        ("a column twice", "value|twice|column", None, "write('curves.csv', 'step,value,value\\n' "
         "+ ''.join(f'{i},{i},0\\n' for i in range(12)))"),
        ("a cell too many", "curves.csv|row|line", None, "write('curves.csv', 'step,value\\n' + "
         "''.join(f'{i},{i},0\\n' for i in range(12)))"),
        ("a text for a value", "high", None, "write('curves.csv', 'step,value\\n1,high\\n')"),
        ("an infinite value", "inf", None, "write('curves.csv', 'step,value\\n1,inf\\n')"),
        ("a step that is NaN", "nan|step", None, "write('curves.csv', 'step,value\\nnan,1\\n')"),
        ("a decimal comma", "curves.csv", None, "write('curves.csv', 'step,value\\n1,0,5\\n')"),
        ("a step twice", "again|twice", None, "write('curves.csv', 'step,value\\n1,1\\n1,2\\n')"),
        ("few steps", "steps|8", None, "write('curves.csv', 'step,value\\n1,1\\n2,2\\n')"),
        ("an open quotation mark", "curves.csv", None, "write('curves.csv', 'step,value\\n\"1,2')"),
        ("a number of 400 digits", "1111|inf|number", None,
         "write('curves.csv', 'step,value\\n1,' + '1' * 400 + '\\n')"),
    )
]  # fmt: skip

_PROMPTS = "pd.read_csv('prompts.csv', dtype=str)"
PROMPTS = [
    Row(f"prompts: {what}", "len(suite.read_facts('prompts.csv'))", message, right, before)
    for what, message, right, before in (
        ("a byte order mark", "clean_prompt", "4", "write('prompts.csv', b'\\xef\\xbb\\xbf' + "
         "Path('prompts.csv').read_bytes())"),
        ("lines that end in CRLF", "", "4", "write('prompts.csv', "
         "Path('prompts.csv').read_bytes().replace(b'\\n', b'\\r\\n'))"),
        ("semicolons", "semicolons", None,
         f"{_PROMPTS}.to_csv('prompts.csv', sep=';', index=False)"),
        ("UTF-16", "prompts.csv", "4", "write('prompts.csv', "
         "Path('prompts.csv').read_text().encode('utf-16'))"),
        ("no rows", "row", None, f"{_PROMPTS}.head(0).to_csv('prompts.csv', index=False)"),
        ("an empty file", "prompts.csv", None, "write('prompts.csv')"),
        ("a folder", "prompts.csv", None, "folder('prompts.csv')"),
        ("a pipe", "prompts.csv", None, "fifo('prompts.csv')"),
        ("nothing there", "prompts.csv", None, "remove('prompts.csv')"),
        ("zero bytes", "prompts.csv|column", None, "write('prompts.csv', bytes(300))"),
        *(
            (f"no column {column}", column, None,
             f"{_PROMPTS}.drop(columns='{column}').to_csv('prompts.csv', index=False)")
            for column in ("clean_prompt", "corrupted_prompt", "name", "answer", "corrupted_answer")
        ),
        *(
            (f"{column} is {value!r}", message, None,
             f"{_PROMPTS}.assign({column}='{value}').to_csv('prompts.csv', index=False)")
            for column, value, message in (
                ("clean_prompt", "", "row 1|clean_prompt"), ("name", "", "row 1|name"),
                ("clean_prompt", "quux", "quux"), ("answer", "quux", "quux"),
                ("answer", "", "row 1|answer"), ("corrupted_answer", "", "row 1|answer"),
                ("name", "quux", "quux"), ("corrupted_prompt", "was", "row 1|token"),
            )
        ),
        ("one answer for both", "row 1", None, f"{_PROMPTS}.assign(corrupted_answer=lambda t: "
         "t.answer).to_csv('prompts.csv', index=False)"),
        ("the same prompt twice in a row", "row 1|differ|same", None, f"{_PROMPTS}.assign("
         "corrupted_prompt=lambda t: t.clean_prompt).to_csv('prompts.csv', index=False)"),
        ("the name twice in a prompt", "row 1|twice|name", "4", f"{_PROMPTS}.assign(clean_prompt="
         "lambda t: t.name + ' ' + t.clean_prompt, corrupted_prompt=lambda t: t.name + ' ' + "
         "t.corrupted_prompt).to_csv('prompts.csv', index=False)"),
        ("a prompt longer than the model", "prompt|token|512", None, f"{_PROMPTS}.assign("
         "clean_prompt=lambda t: 'was ' * 600 + t.clean_prompt, corrupted_prompt=lambda t: 'was ' *"
         " 600 + t.corrupted_prompt).to_csv('prompts.csv', index=False)"),
        ("a column twice", "clean_prompt|twice", None, "write('prompts.csv', 'clean_prompt,' + "
         "Path('prompts.csv').read_text().replace('\\n', '\\nwas,'))"),
    )
]  # fmt: skip
