"""What a model is asked when it makes new rows, in English and Chinese.

Between braces: question (what the row asks), answer (what it answers), reply1
(what the model said to the prompt before).
"""

# Of each evolution: what the new task shall be.
_HOW = {
  'compound': (
    'asks for two related things at once, so that the answer to one is needed '
    'for the other',
    '同时要求两件相关的事，其中一件的结果是另一件所需要的',
  ),
  'breadth': (
    'is about another, less common subject of the same field, and is as long '
    'and as hard',
    '属于同一领域，但换成另一个更少见的主题，长度和难度相当',
  ),
  'deepen': (
    'goes deeper into the same matter, so that an answer needs more knowledge '
    'of it',
    '就同一件事问得更深，回答它需要更多的知识',
  ),
  'constrain': (
    'adds one more condition that a good answer has to keep',
    '多加一个好的回答必须满足的条件',
  ),
  'concretise': (
    'puts a particular case in the place of what is general in it',
    '把其中笼统的说法换成一个具体的情形',
  ),
  'reason': (
    'cannot be answered in one step, but needs several steps of reasoning that '
    'build on each other',
    '不能一步答出，需要几步前后相连的推理',
  ),
}

_EVOLVE_EN = """\
Write a task for an assistant. Make it from the task between <<< and >>>, in \
such a way that it {how}.

- Somebody who knows the field can answer it in writing, without pictures, \
files or the web, and it can be understood without the old task.
- Text, tables, numbers and code that the old task brings stay in it.
- It is at most about thirty words longer.

Say the new task and nothing else: no title, no remark, no answer.

<<<
{question}
>>>"""

_EVOLVE_ZH = """\
请为一个助手出一道题。以 <<< 和 >>> 之间的题目为基础改写，使新题目{how}。

- 懂这个领域的人可以用文字回答，不需要图片、文件或上网；不看原题也能明白。
- 原题带有的文字、表格、数字和代码要保留。
- 最多比原题长五十个字左右。

只写出新题目，不要标题，不要说明，也不要回答。

<<<
{question}
>>>"""

# An answer to the new task: it is asked as anybody would ask it.
_ANSWER = '{reply1}'

_STEP_BACK_EN = (
  """\
Here is a question:

<<<
{question}
>>>

Do not answer it yet. Which general principle, law, definition or method decides \
questions of this kind? State it in one to four sentences that would hold for \
other questions of the kind too, and say nothing about this one.""",
  """\
Here are a question, the principle behind it, and an answer whose content is \
right:

Question:
<<<
{question}
>>>

Principle:
<<<
{reply1}
>>>

Answer:
<<<
{answer}
>>>

Write the reasoning that leads from the principle to this answer: apply the \
principle to the case at hand, step by step, and end with what the answer says. \
Do not repeat the principle, do not change what the answer comes to, and do not \
mention that an answer was given.""",
)

_STEP_BACK_ZH = (
  """\
有这样一个问题：

<<<
{question}
>>>

先不要回答。这一类问题由什么一般的原理、定律、定义或方法决定？请用一到四句话说出来，\
这些话对同类的其他问题也要成立，不要提到这个问题本身。""",
  """\
下面是一个问题、它背后的原理，以及一个内容正确的回答：

问题：
<<<
{question}
>>>

原理：
<<<
{reply1}
>>>

回答：
<<<
{answer}
>>>

请写出从原理到这个回答的推理：把原理一步一步地用到眼前的问题上，最后得出回答所说的结论。\
不要重复原理，不要改变回答的结论，也不要提到已经给出过回答。""",
)


def evolutions() -> dict[str, dict[str, tuple[str, ...]]]:
  """Returns name -> language -> the prompts of that evolution, in turn."""
  return {
    name: {
      'en': (_EVOLVE_EN.replace('{how}', english), _ANSWER),
      'zh': (_EVOLVE_ZH.replace('{how}', chinese), _ANSWER),
    }
    for name, (english, chinese) in _HOW.items()
  }


STEP_BACK = {'en': _STEP_BACK_EN, 'zh': _STEP_BACK_ZH}
