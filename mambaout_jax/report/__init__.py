# SPDX-License-Identifier: Apache-2.0
"""Reports: what the paper prints beside what is counted and measured here.

printed.py    Table 1 of the paper, as printed
table1.py     its rows with our figures, and the files of the report
measured.py   speeds and memory, kept model by model
texts.py      the table as CSV and Markdown
page.py       the table as a page with charts; page.html, page.css and page.js are its parts
"""
