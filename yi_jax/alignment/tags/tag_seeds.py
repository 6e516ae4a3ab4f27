"""Tags of conversations, and the words of a question that give one away.

Ours: intentions (what the user wants) and subjects (what it is about), after
the idea of InsTag (arXiv:2308.07074), whose thousands of tags a large model
chose. A seed labels a row for training; `tags` learns to do without it.
"""

INTENTIONS = (
  *('explain', 'list', 'edit', 'summarize', 'classify', 'compare', 'story'),
  *('verse', 'letter', 'plan', 'code', 'calculate', 'prove_or_draw'),
  *('translate', 'define', 'advise', 'call_tool', 'greet', 'joke', 'opinion'),
)

# Tag -> patterns of English and of Chinese, of the questions, without case.
SEEDS: dict[str, tuple[str, str]] = {
  'explain': (
    r'\b(?:explain|describe|how does|how do |why (?:is|are|do|does)|what causes)',
    r'解释|描述|为什么|说明|阐述|原理|怎么回事',
  ),
  'list': (
    r'\b(?:list|name|give me|provide|suggest|come up with|brainstorm) '
    r'(?:\w+ ){0,2}(?:\w+s\b)|\bexamples? of\b',
    r'列出|列举|提供.{0,4}[个种]|给出.{0,4}[个种条]|举[几一二三四五\d]*个?例|'
    r'[三四五六十\d]+个.{0,8}(?:建议|例子|方法|原因|想法)',
  ),
  'edit': (
    r'\b(?:rewrite|rephrase|edit|paraphrase|correct|proofread|fix|convert|'
    r'transform|reword|change the|replace|rearrange)\b',
    r'改写|重写|修改|编辑|纠正|改成|润色|重新(?:组织|排列|表述)|替换|转换|改正|转化',
  ),
  'summarize': (
    r'\b(?:summari[sz]e|summary|sum up|main points?|main idea|headline)\b',
    r'总结|概括|摘要|概述|归纳|标题',
  ),
  'classify': (
    r'\b(?:classify|categori[sz]e|identify|label|detect|determine (?:if|whether)|'
    r'which of the)\b',
    r'分类|归类|识别|判断|鉴别|属于哪|哪一?[个种]',
  ),
  'compare': (
    r'\b(?:compare|contrast|differences? between|versus|vs\.?|pros and cons|'
    r'better than)\b',
    r'比较|对比|区别|不同之处|优缺点|相比|差异',
  ),
  'story': (
    r'\b(?:story|stories|tale|fiction|plot|character|dialogue|script|scene)\b',
    r'故事|小说|情节|对话|剧本|角色|童话|寓言',
  ),
  'verse': (
    r'\b(?:poem|haiku|lyrics?|song|rhyme|verse|limerick|sonnet)\b',
    r'诗|歌词|歌曲|韵|对联|俳句',
  ),
  'letter': (
    r'\b(?:email|letter|essay|article|blog|speech|advertisement|slogan|'
    r'product description|tweet|resume|cover letter|invitation|review)\b',
    r'邮件|信函|写一封|文章|博客|演讲|广告|口号|标语|推文|简历|邀请|作文|评论',
  ),
  'plan': (
    r'\b(?:plan|schedule|strategy|itinerary|agenda|steps? to|process of|'
    r'how (?:can|do|to) \w+|design an? |outline)\b',
    r'计划|方案|策略|步骤|流程|行程|大纲|设计一',
  ),
  'code': (
    r'\b(?:code|python|java|javascript|sql|html|css|c\+\+|algorithm|program|'
    r'function|script|regex|api|bug|array|compile\w*|swift|scala|php|ruby)\b',
    r'代码|程序|编程|算法|函数|脚本|数据库|编写一个|正则|数组',
  ),
  'calculate': (
    r'\b(?:calculate|compute|solve|sum of|average|percentage|equation|how many|'
    r'how much is|multiply|divided? by|probability)\b|\d\s*[-+*/x×÷]\s*\d',
    r'计算|求|等于|一共|多少|平均|算式|解方程|百分|\d\s*[-+*/×÷]\s*\d',
  ),
  'prove_or_draw': (
    r'\b(?:prove|proof|draw|sketch|diagram|chart|plot a)\b',
    r'证明|画[一出图]|作图|图表|示意图|绘制|连一连',
  ),
  'translate': (
    r'\btranslat\w*|\b(?:in|into|to) (?:french|spanish|german|chinese|japanese)',
    r'翻译|译成|译为|英语怎么说|[英法德日]文怎么说',
  ),
  'define': (
    r'\b(?:define|definition|meaning of|what does .{1,30} mean|synonyms?|'
    r'antonyms?|stands? for)\b|^what (?:is|are) (?:an? |the )?\w+\W*$',
    r'什么是|是什么意思|定义|同义词|反义词|近义词|含义',
  ),
  'advise': (
    r'\b(?:advice|tips?|recommend\w*|should i|how can i|best ways?|suggestions?|'
    r'improve|avoid)\b',
    r'建议|推荐|如何.{0,10}(?:提高|改善|避免|保持)|怎样才能|技巧|怎么办|应该',
  ),
  'call_tool': (
    r'\b(?:book|order|schedule|remind me|set (?:an? )?(?:alarm|reminder|timer)|'
    r'search for|find me|generate an? (?:password|invoice|qr code)|'
    r'exchange rate|stock price|track my|convert \d+)\b',
    r'帮我(?:订|预订|找|搜索|设置|创建|计算|查|生成)|提醒我|汇率|股票价格|二维码|'
    r'预订|订(?:一|个)|我需要.{0,6}(?:生成|计算|转换|查找|预订|翻译)',
  ),
  'greet': (
    r'^\W*(?:hi|hello|hey|good (?:morning|evening|night)|greetings|bye|'
    r"what'?s up|how are you)\b|nice (?:to meet|chatting|talking)",
    r'^\W*(?:你好|您好|嗨|早上好|晚安|再见)|最近如何|你好吗',
  ),
  'joke': (
    r'\b(?:jokes?|funny|humou?r|laugh|pun|riddle|haha|lol)\b',
    r'笑话|玩笑|幽默|谜语|好笑',
  ),
  'opinion': (
    r'\b(?:what do you think|do you (?:like|believe|think|prefer|agree)|'
    r'(?:your|an?) (?:opinion|favou?rite)|i think|i believe)\b',
    r'你(?:认为|觉得|喜欢|最喜欢)|看法|观点|评价|意见',
  ),
  'geometry': (
    r'\b(?:triangle|circle|angle|rectangle|square root|radius|diameter|'
    r'perimeter|volume of|area of)\b',
    r'三角形|正方形|长方形|平行四边形|圆[形柱锥的]|角度|周长|面积|体积|棱长|直径|半径|'
    r'线段|∠|平面图|方格',
  ),
  'language': (
    r'\b(?:sentence|grammar|noun|verb|adjective|adverb|word|spelling|tense|'
    r'punctuation|phrase|paragraph)\b',
    r'句子|语法|词语|词汇|名词|动词|形容词|成语|短语|时态|标点',
  ),
  'science': (
    r'\b(?:physics|chemi\w+|biolog\w+|atoms?|energy|planets?|cells?|gravity|'
    r'molecul\w+|dna|species|scientific|science|universe|stars?|quantum|photo'
    r'synthesis|evolution|temperature)\b',
    r'物理|化学|生物|原子|能量|行星|细胞|引力|分子|基因|科学|宇宙|量子|光合|进化|太阳系|'
    r'温度',
  ),
  'technology': (
    r'\b(?:computers?|software|internet|ai|artificial intelligence|machine '
    r'learning|data|robots?|phones?|laptop|app|blockchain|website|wifi|network|'
    r'online|google|programming|digital)\b',
    r'计算机|电脑|软件|互联网|人工智能|机器学习|数据|机器人|手机|应用程序|区块链|网站|'
    r'网络|技术|数字化',
  ),
  'health': (
    r'\b(?:health\w*|doctor|disease|exercise|diet|medical|medicine|sleep|stress|'
    r'symptoms?|virus|vitamin\w*|mental|weight|covid\S*|workout|bmi)\b',
    r'健康|医生|疾病|锻炼|饮食|药|睡眠|压力|症状|病毒|维生素|营养|体重|疫情|运动|减肥',
  ),
  'food': (
    r'\b(?:food|recipes?|cook\w*|eat\w*|meal|dinner|lunch|breakfast|restaurants?|'
    r'pizza|cake|fruits?|vegetables?|chicken|coffee|drink|bak\w+|ingredients?)\b',
    r'食物|食谱|烹饪|吃|餐|水果|蔬菜|鸡肉|咖啡|菜|蛋糕|食品|饮料|披萨|茶',
  ),
  'travel': (
    r'\b(?:travel\w*|trip|vacation|hotel|flights?|tourist|city|country|countries|'
    r'visit|beach|europe|capital of|mission)\b',
    r'旅行|旅游|酒店|航班|景点|城市|国家|首都|度假|机票|参观',
  ),
  'history': (
    r'\b(?:history|historical|war|century|ancient|king|queen|empire|president|'
    r'invented|revolution|independence|civilization)\b',
    r'历史|战争|世纪|古代|皇帝|朝代|发明|革命|总统|文明|革命',
  ),
  'politics': (
    r'\b(?:government|politic\w*|law|vote|election|democra\w+|policy|rights|'
    r'communism|capitalism|trump|congress|court)\b',
    r'政府|政治|法律|选举|民主|政策|权利|社会主义|公民|法院|制度',
  ),
  'business': (
    r'\b(?:business|company|market\w*|customers?|sales|product|brand|startup|'
    r'employees?|management|invest\w*|stocks?|money|price|loan|tax|finance|'
    r'budget|salary|job|career)\b',
    r'商业|公司|市场|客户|销售|产品|品牌|企业|员工|管理|投资|股票|股市|钱|价格|贷款|税|金融|'
    r'预算|工资|工作|职业|商店|元',
  ),
  'education': (
    r'\b(?:school|class|students?|teachers?|college|university|study|learn\w*|'
    r'homework|exam|test|major|professor|byu|education)\b',
    r'学校|班|学生|老师|大学|学习|作业|考试|教育|课程|同学|课',
  ),
  'environment': (
    r'\b(?:environment\w*|climate|pollution|recycl\w+|sustainab\w+|renewable|'
    r'carbon|global warming|plastic|nature|forest|ocean|weather|snow|rain)\b',
    r'环境|气候|污染|回收|可持续|可再生|全球变暖|塑料|自然|森林|海洋|天气|环保|雪',
  ),
  'arts': (
    r'\b(?:movies?|films?|music|books?|novel|art|painting|song|tv|show|actor|'
    r'author|read(?:ing)?|star wars|band|guitar|piano|netflix|marvel|museum|'
    r'harry potter)\b',
    r'电影|音乐|书|艺术|绘画|演员|作家|作者|阅读|歌|文学|博物馆|戏剧',
  ),
  'sports': (
    r'\b(?:sports?|football|soccer|basketball|baseball|team|game|player|nba|'
    r'olympic\w*|swim\w*|running|tennis|ski\w*|hik\w+|climb\w*)\b',
    r'体育|足球|篮球|比赛|球队|运动员|奥运|游泳|跑步|网球|跳绳|队',
  ),
  'animals': (
    r'\b(?:animals?|dogs?|cats?|pets?|birds?|horses?|fish|puppy|elephants?|bears?|'
    r'penguins?|insects?)\b',
    r'动物|狗|猫|宠物|鸟|马(?!上)|鱼|大象|熊|昆虫|兔|鸡|猴',
  ),
  'people': (
    r'\b(?:friends?|famil\w+|mother|father|mom|dad|brother|sister|wife|husband|'
    r'girlfriend|boyfriend|dat(?:e|ing)|marri\w+|kids?|roommates?|love)\b',
    r'朋友|家庭|母亲|父亲|妈妈|爸爸|哥哥|姐姐|弟弟|妹妹|妻子|丈夫|孩子|结婚|爱情|爷爷|奶奶',
  ),
  'feelings': (
    r'\b(?:happy|sad|angry|afraid|fear\w*|lonely|feel\w*|emotion\w*|bored|'
    r'stressed|anxi\w+|excited|sorry|mad|upset|hate)\b',
    r'快乐|悲伤|生气|害怕|孤独|感觉|情绪|情感|无聊|焦虑|兴奋|抱歉|心情|开心|难过',
  ),
  'self': (
    r'\b(?:are you|do you|you are|can you (?:move|eat|walk|die|breathe|lie)|'
    r'will you|your (?:age|name|number|favou?rite))\b',
    r'你(?:是|会|能|有|多大|叫|为什么|吃|喜欢|可以)',
  ),
}
