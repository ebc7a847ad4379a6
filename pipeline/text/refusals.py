"""Find responses that refuse, disclaim or ask for what the prompt lacks, and responses of pleasantries only.

The lists in use match words anywhere in a response: `optional_clean.py` of ShareGPT_Vicuna_unfiltered and the script
for WizardLM's unfiltered set that grew from it, the prefixes of llm-attacks, garak's `mitigation.MitigationBypass`, and
Chinese ones (作为AI, 抱歉，我无法). They would drop "抱歉，无法退货的商品包括…" and every text about language models.
Here the clause must be the speaker's own, and without the sentences about the speaker hardly anything may remain.
"""

import polars as pl

_TRADITIONAL = (
    "萬與個箇為爲舉麼樂習於親僅們價會兒關興寫齣創別彆製辦務勵勞協參蔘隻檯臺颱閤嚮曏嗎嘍迴睏圍處備復複誇獎學實傢對幫"
    "並併倖應開噹當願戶執擬換蒐斷無時暫機權樣樁歡氣漢沒註測瀏滿現電畫確稱係繫繪給絕統繼續編腦緻範薦榮獲穫虛錶見覽計"
    "訂認討讓議講許論設訪評識訴詞譯話詢該語說説請讀謝讚贊過還這違適遺問隨韓預題饋來傳內將據數種記貼資類訊瞭聽圖規顯鏈難從庫訓練須發連臨師"
)
_SIMPLIFIED = (
    "万与个个为为举么乐习于亲仅们价会儿关兴写出创别别制办务励劳协参参只台台台合向向吗喽回困围处备复复夸奖学实家对帮"
    "并并幸应开当当愿户执拟换搜断无时暂机权样桩欢气汉没注测浏满现电画确称系系绘给绝统继续编脑致范荐荣获获虚表见览计"
    "订认讨让议讲许论设访评识诉词译话询该语说说请读谢赞赞过还这违适遗问随韩预题馈来传内将据数种记贴资类讯了听图规显链难从库训练须发连临师"
)
"""The Traditional forms of the patterns' characters, in Big5 or of opencc's `s2t`, and what `t2s` makes of them."""

_WORD = r"(?-u:\b)"  # the edge of an ASCII word; Unicode's would make the search slow on Chinese text

_NOT_OWN = (
    r"“[^”]*”|\"[^\"\n]*\"|「[^」]*」|『[^』]*』|‘[^’]*’|《[^》]*》|`[^`\n]*`|"
    # 无法退货的商品包括…: it isn't the speaker that can't
    r"(?:无法|不能|没有)[^\p{P}\n]{0,20}[^\p{P}\n您你我]的[^\p{P}\n]{1,12}?"
    r"(?:包[括含]|如下|[^所没具]有|是|[^行认因成]为|可以|不[能得可]|需要|应当?|请|主要|通常|一般|[:：])|"
    # 您没有提供授权码时，系统会…: a condition. I can't recommend it enough.
    r"(?:无法|不能|没有|未)[^\p{P}\n]{0,20}(?:时|的话|情况下)[，,]|"
    rf"{_WORD}i (?:can't|cannot|can not) [^.!?\n]{{0,60}}? enough(?:[.!,:;\n]|$)"
)
_TASK = (
    r"(?:提供|回[答复应]|协助|帮|满足|访问|查[看询找]|浏览|搜索|生成|创[建作]|执行|处理|完成|理解|识别|评[价论估]|判断|预[测定订]|"
    r"确[定认]|给出|透露|讨论|参与|支持|推荐|翻译|编?写|撰写|画|绘制|看到|读取|打开|获取|播放|直接|实时|[为给][您你])"
)
_ADVERB = r"(?:目前|现在|暂时|可能|也|还|并|实在|恐怕|仍然?|确实|真的|一直|只|就|[作身]为[^\p{P}\n]{0,24})*"
_UNABLE = r"(?:无法|不能|没法|没办法|不便|没有(?:能力|办法|权限)|不具备)"
_UNSURE = r"不(?:太|是很|大)?(?:知道|明白|理解|了解|确定|清楚)"
_HELPLESS = r"(?:做不到|帮不[了到上]|回答不[了出上])"
_APOLOGY = (
    r"^(?:[您你]好[\s，,！!。]*)?(?:我|真|实在|感到|非常|很|十分|深[感表]|万分|表示)*"
    r"(?:抱歉|对不起|不好意思|遗憾|歉意|道歉)(?:的是|地?告诉[您你])?"
    r"[哦呀啦喔哈]?[\s，,。.!！、]*(?:但是?|不过|可是)?[\s，,]*"
)
_ASSISTANT = (
    r"(?:(?:(?:ai|人工智[能慧]|大|语言|机器学习|自然语言处理|文本|文字型|聊天|虚拟|计算机|电脑)\s*)+"
    r"(?:模型|助手|助理|程序|系统|机器人)(?:\s*ai)?|ai|人工智[能慧]|基于文本的模型|智能客服|文心一言|通义千问|讯飞星火|豆包|智谱清言|kimi|chatgpt|deepseek)"
)
_NAMED = "(?:小助手|小爱(?:同学)?|小度|小冰|小艺|小布|本(?:助手|模型))"
_ATTACHED = "(?:图片|图像|截图|照片|附件|文件|链接)"
_NOT = r"(?:无法|不能|没法|不会|不便|不宜|不可以|不知道|不了解|不确定|不具[备有]|没有|并非|不是)"
_CHINESE_REFUSALS = (
    # 抱歉，我…: after an apology. Without "我", the verb must be one of an assistant's.
    rf"{_APOLOGY}(?:目前|现在|暂时|这个?(?:问题)?)?我们?{_ADVERB}(?:{_UNABLE}|没有|{_UNSURE}|{_HELPLESS}|不(?:太|大)?(?:能|想|希望|愿|应|可以|熟悉|会{_TASK}))",
    rf"{_APOLOGY}{_ADVERB}(?:{_UNABLE}{_TASK}|{_UNSURE}|(?:没有|未能?)(?:完全)?(?:理解|明白|[找查]到|相关))",
    rf"{_APOLOGY}我?(?:刚才)?(?:还|并)?没有?(?:太|大|完全)?(?:听|看|弄|搞)(?:懂|清|明白)",
    # The speaker may have a name, or none: 小助手还在学习中，暂时无法回答
    rf"(?:还在学习中?|{_NAMED})[，,。]?[^。\n]{{0,12}}?(?:{_UNABLE}|不会|回答不[了上]|听不懂)",
    rf"{_APOLOGY}(?:该|此|这[个种类]?|[您你]的)(?:请求|要求|问题|内容|话题)[^。\n]{{0,20}}(?:{_UNABLE}|违反|超出|涉及)",
    rf"{_APOLOGY}[^。\n]{{0,60}}(?:不合适|不恰当|不道德|不适合(?:在|讨论|回答))",
    rf"{_APOLOGY}(?:由于|因为)?[您你](?:似乎|好像|还|并)?(?:没有?|未)(?:[为向]我)?(?:提供|给|指定|说明)",
    # 您的问题暂时无法回答, 无法回答您的问题: the question is the reader's
    rf"(?:[您你](?:[提问]的|的)(?:这个)?问题[^\p{{P}}\n]{{0,6}}|^(?:这个|该)问题(?:我|目前|暂时|还)*)(?:{_UNABLE}[回解]答|回答不[了上])",
    rf"(?:^|[，,。！!；;\s])(?:目前|暂时|现在|还|也|实在)*(?:{_UNABLE}(?:[回解]答|理解)|回答不[了上])[您你]的",
    rf"(?:[您你](?:提供|发送?|给出?|分享)的|{_APOLOGY}(?:该|此|这个)?)(?:链接|网址|文件|图片)[^\p{{P}}\n]{{0,6}}?"
    rf"(?:{_UNABLE}(?:打开|访问|查看|读取|识别)|打不开)(?:[。！!，,]|$)",
    rf"(?:^|[，,。！!])我(?:目前|现在|这边)?(?:看不[到见]|没有?(?:看到|收到)|未(?:看到|收到))[^\p{{P}}\n]{{0,8}}{_ATTACHED}",
    rf"^请[您你]?(?:先|重新)?(?:上传|粘贴)[^\p{{P}}\n]{{0,6}}{_ATTACHED}[。！!]*$",
    r"(?:该|此|本)(?:内容|话题)[^。\n]{0,20}(?:无法|不能|不予)(?:显示|展示|生成|提供|讨论)(?:[。！!]|$)",
    r"^[您你](?:似乎|好像|可能)?(?:没有?|未|忘[了记])(?:[为向]我)?(?:提供|给出?|附上|上传|粘贴|指定|说明)",
    # 请提供您想要翻译的文本; but 请提供身份证原件 may answer the question
    r"^(?:好的[，,。！!\s]*)?(?:请问?)?[您你]?(?:可以|能否?|先)?提供(?:一下)?"
    r"[^。\n]{0,10}(?:[想需]要|更多|[^。\n]{0,20}[，,。](?:以便|这样)?我(?:会|将|才|来|可以|就|能))",
    # 作为AI，我…: as the first word of a clause; "机器学习作为人工智能的分支" has another subject.
    rf"(?:^|[^\p{{L}}]|[但我])[作身]为[^\p{{P}}\n]{{0,24}}?{_ASSISTANT}\s*(?:[，,]|我)[^。！？!?\n您你]{{0,40}}?{_NOT}",
    rf"我(?:只|仅仅?)?是[^\p{{P}}\n]{{0,20}}?{_ASSISTANT}(?:而已|，由[^\p{{P}}\n]{{0,24}})?(?:[\s，,。；;][^\p{{P}}\n您你]{{0,5}}?)?{_NOT}",
    # 因此我无法提供…: without an apology
    rf"(?:^|[\s，,。.！!？?；;]|因此|所以|但是?|然而|不过|而且|并且|恕|由于|问题)我{_ADVERB}"
    rf"(?:{_UNABLE}{_TASK}|不会(?:协助|帮助|提供|参与|支持|回答)|{_HELPLESS}|没有{_TASK}[^\p{{P}}\n]{{0,16}}(?:能力|权限)|没有?学[会习](?:如何|怎[么样])?回答)",
    rf"^(?:恕|对此)?(?:我们?)?{_ADVERB}(?:{_UNABLE}|拒绝)(?:提供|回[答复]|协助|满足|透露)",
    r"(?:^|[，,。；])(?:目前|暂时)?我(?:目前|暂时)?没有[^\p{P}\n]{0,16}(?:信息|资讯|资料|数据)(?:[，,。]|$)",
    rf"我的(?:知识|训练数据|信息|数据)[^。\n]{{0,24}}(?:截[止至]|更新|停留)[^。\n]{{0,24}}?{_NOT}",
    r"我(?:必须|只能|不得不)(?:婉拒|拒绝)(?:[您你]的|这个|该)?(?:请求|要求|回答|提供)|^恕(?:我)?(?:不能|无法|难以?)(?:从命|奉告)",
    r"^(?:抱歉，)?我?不(?:太)?(?:确定|清楚|明白)[您你](?:是|在|想|要|指)[^。\n]{0,8}(?:什么|哪)",
    r"^(?:不知道|不清楚|不了解|不晓得)[呢哦啊呀]?[。！!.~]*$",
    r"我的(?:程序|编程|设[定计])[^\p{P}\n]{0,6}不允许|超出了我的[^\p{P}\n]{0,6}(?:范围|能力)",
    rf"^无可奉告|^(?:这个)?我[也并]?{_UNSURE}(?:[，,](?:抱歉|对不起|不好意思))?(?:[。！\n]|$)|^(?:尊敬的用户)?[您你]好，让我们换个话题",
)
_ENGLISH_TASK = (
    r"(?:assist|help(?: (?:you|with|in|out)|[.,!]|$)|provid|answer|fulfil|comply|generat|creat|writ|produc|access|"
    r"brows|search|complet|process|discuss|engag|support|offer|shar|giv|perform|continu|participat|"
    r"do (?:that|this|so|it)|make (?:that|this)|see |view|open |read |watch|listen|understand|translat|recommend|"
    r"predict|confirm|verify|determin|tell you|talk|speak|execut|respond|order |book )"
)
_DECLINE = r"(?:must|have to) (?:respectfully |politely )?(?:decline|refuse)"
_ENGLISH_UNABLE = (
    r"(?:can(?:no|')t|can not|could(?:n't| not)|won't|will not|"
    r"(?:'m|am|'re|are) (?:not (?:able|allowed|permitted|programmed|designed|comfortable)|unable)(?: to)?|"
    rf"(?:do not|don't) (?:feel comfortable|have (?:the (?:ability|capability|capacity|means)|enough|any))|"
    rf"(?:'d| would) (?:rather|prefer) not(?: to)?|{_DECLINE})"
)
_ENGLISH_CLAUSE = r"(?:^|[.!?;,\n]\s*|\b(?:but|however|unfortunately|so|because|since|and|therefore|that)\s+)"
_ENGLISH_APOLOGY = (
    r"^(?:oh,? |well,? |unfortunately,? )?(?:(?:(?:i|we)(?:'m| am|'re| are) )?"
    r"(?:(?:so|very|really|truly|deeply|terribly|extremely) )*(?:sorry|afraid)|"
    r"(?:i|we|my) (?:sincerely |deeply )?apolog\w+)\b"
)
_ENGLISH_ASSISTANT = (
    r"(?:ai|artificial intelligence|language model|chatbot|(?:virtual|digital) assistant|computer program|"
    r"machine learning model)(?: (?:language )?(?:model|assistant|system|program|chatbot|bot))*"
    r"(?: (?:developed|created|trained|made|designed|built) by [^.,!?\n]{1,30})?"
)
_ENGLISH_REFUSALS = (
    rf"{_ENGLISH_APOLOGY}[^.!?\n]{{0,60}}?\b(?:(?:i|we) ?(?:{_ENGLISH_UNABLE}|do not|don't|am not|'m not)|"
    r"did(?: not|n't) (?:quite )?(?:understand|get|catch)|that(?:'s| is) (?:not something|beyond|outside))",
    r"^(?:(?:sure|of course|certainly)[,.!] )?(?:please|(?:could|can) you(?: please)?) "
    r"(?:provide|share|specify|clarify)\b[^.!?\n]{0,40}\b"
    r"(?:you(?:'d| would)? (?:like|want|need)|more (?:context|information|details?)|so (?:that )?i)\b",
    r"^(?:could|can) you(?: please)? (?:provide|share|upload|attach|paste)\b[^.!?\n]{0,60}\?$",
    r"^please (?:upload|attach|paste) (?:the|your|an?) (?:image|picture|photo|text|file|document)[.!]?$",
    r"^i (?:do not|don't) know(?: the answer| about that| that)?[.!]?$|^(?:i have )?no idea[.!]?$|"
    r"^i have no information\b|"
    r"^i (?:do not|don't|did not|didn't|can't|cannot) see (?:any |an? |the |your )?(?:image|picture|photo|file|attach)",
    r"^(?:sorry, |unfortunately, )?my (?:training data|knowledge)\b[^.!?\n]{0,20}"
    r"\b(?:only|up to|cutoff|until|ends?)\b[^.!?\n]{0,40}(?:n't|not)\b|"
    r"^it(?:'s| is) not possible for me to\b|^this (?:content|prompt|request) may violate\b",
    rf"{_ENGLISH_CLAUSE}(?:i|we) ?{_ENGLISH_UNABLE}(?: \w+){{0,3}}? ?{_ENGLISH_TASK}",
    rf"{_ENGLISH_CLAUSE}(?:i|we) (?:{_DECLINE}|(?:do not|don't) have "
    r"(?:access to|the ability|personal (?:opinion|feeling|experience|belief|preference|emotion)|real-time|"
    r"(?:any |specific |enough |sufficient )*(?:information|data|knowledge)\b))",
    # "As an AI, I …", but not "As an AI engineer, I …"
    r"(?:^|[.!?;,:\n]\s*|\b(?:but|because|since|while|although|and)\s+)"
    rf"(?:as (?:an? )?|i(?:'m| am) (?:just |only |merely |simply )?an? )(?:[a-z-]+ ){{0,3}}?{_ENGLISH_ASSISTANT}"
    r"(?:\s*[,.;]\s*|\s+)(?:(?:i|it|my|and|so|that|but)\b[^.!?\n]{0,60}?)?"
    r"(?:can(?:no|')t|can not|n't|not|unable|lack)\b",
    r"^(?:that's|that is|this is) not something i can|"
    r"^it(?:'s| is| would be) (?:not appropriate|inappropriate|unethical|against)\b[^.\n]{0,30}\bfor me\b|"
    r"\bagainst my (?:programming|guidelines|principles)\b|^(?:i'm|i am) not sure (?:what|i understand)\b",
)
_HEAD = 100
"""Chosen here: the refusal is in the first 100 characters, or 200 of English, which says less in each."""

_LONGEST_REFUSAL = 750
"""Bytes, which are 250 Chinese characters; what is longer says what it can't do, then does what it can."""

_ABOUT_SPEAKER = (
    r"[^。！？；.!?;\n]*(?:我|如果[您你]|请|抱歉|对不起|重要的是|要注意|道德|非法|违法|违反|尊重|吗|能否|"
    rf"{_WORD}(?:i|my|me){_WORD}|if you|please|feel free|is there anything|important|illegal|unethical|harmful|"
    r"inappropriate|against|sorry)[^。！？；.!?;\n]*[。！？；.!?;\n]?"
)
"""A sentence about the speaker or to the reader: an apology, an offer, a warning, a request for more."""

_TURN = rf"[，,]?\s*(但是?|不过|然而|{_WORD}(?:but|however){_WORD})"
_MOST_HELP = 75
"""Bytes of help, without punctuation, that leave a refusal a refusal: 25 Chinese characters or about 14 words, which is
a sentence. Chosen here, by reading those around it."""

_PLEASANT_REPLY = (
    r"^(?:不(?:用|必)?客气|不用?谢|别客气|没关系，随时[^\p{P}\n]{0,16}|"
    r"you(?:'re| are) (?:very |most |so )?welcome|my pleasure)"
    r"(?:[了啦哦呀喔哈的]|，?(?:孩子|朋友|亲))*\s*(?:[\p{P}\p{S}]|$)|^(?:再见|拜拜)[\p{P}\p{S}][^a-z]*$"
)
"""A reply to thanks or a farewell, whatever is said after it; as a clause of its own, unlike in 不客气的英语是…"""

_PLEASANT_CLAUSES = (
    r"好(?:的|吧|嘞|哒|滴|喔)|(?:亲[，,]?)?在[的呢]|(?:请|您)?稍等|早安|(?:早上|上午|中午|下午|晚上)好|好梦|哈{2,}|没问题|当然(?:可以)?|收到|嗯+|我?明白了?|不(?:用|必)?客气|不用?谢|别客气|没关系|再见|拜拜|晚安|加油|"
    r"[您你]好|大家好|嗨|哈喽|我知道了|没事(?:的|儿|哒|没事)?|(?:这是我)?应该(?:做)?的|举手之劳|小事一桩|[您你]太客气了|过奖了?|祝好",
    r"(?:非常|十分|太)?(?:感谢|谢谢|多谢)(?:[您你]们?|大家|老师|亲)?(?:的?(?:来电|回馈|夸奖|称?赞美?|支持|反馈|理解|建议|帮助|鼓励|关注|配合|提[问醒]|分享|"
    r"信任|认可|肯定|评价|祝福|回复|耐心|指正|邀请|好意|关心)[和与及]?)*",
    r"我?(?:很|非常|十分)?(?:高兴|荣幸|乐意|开心|愿意)[^\p{P}\n]{0,8}(?:帮|服务|效劳|见到|认识|支持)[^\p{P}\n]{0,8}",
    r"希望[^\p{P}\n]{0,12}(?:帮助|有用|帮到)[^\p{P}\n]{0,6}|祝[您你][^\p{P}\n]{0,16}",
    r"(?:请问)?(?:今天)?(?:我|还|[您你])?(?:有什么|有其他|能|可以|需要)[^\p{P}\n]{0,8}(?:帮|需要|服务|做什么|做些什么)[^\p{P}\n]{0,8}",
    r"(?:如果|若|如)?[您你]?(?:还|再)?有?(?:任何|其他|什么)(?:其他)?的?(?:问题|疑问|困惑|需[要求])(?:帮[助忙])?(?:的地方|的话)?",
    r"(?:有任何问题)?(?:请|欢迎|可以)?[您你]?随时(?:都?可以)?[^\p{P}\n]{0,10}|欢迎[您你]?(?:再次|下次)(?:光临|再来)|请(?:继续|说|讲|问|告诉我)",
    r"ok(?:ay)?|sure(?: thing)?|of course|certainly|no problem|not a problem|no worries|anytime|got it|take care|"
    r"great(?: question)?|absolutely|you bet|understood|noted|sounds good|will do|cheers|welcome|no worries at all|thx|"
    r"my pleasure|you(?:'re| are) (?:very |most |so )?welcome|"
    r"hello|hi(?: there)?|(?:good)?bye|see you(?: later| soon)?|good (?:morning|night|luck)",
    r"thanks?(?: you)?(?: so much| very much| a lot)?(?: for [^.!?\n]{0,30})?",
    r"(?:i'm |i am )?(?:so |very )?(?:glad|happy|pleased) (?:i could|to) (?:help|assist|be of|hear)[^\p{P}\n]{0,16}",
    r"(?:i )?hope (?:this|that|it) helps?(?: you)?|have a (?:great|nice|good|wonderful|lovely) \w+",
    r"(?:please )?(?:let me know|feel free to)[^.!?\n]{0,60}|if you (?:have|need) any[^.!?,\n]{0,40}",
    r"(?:how|what) (?:can|may) i (?:help|assist|do for)[^.!?\n]{0,20}|is there anything else[^.!?\n]{0,40}",
)
_END = r"[呀啊哦啦了呢吗吧的~]*(?:\s*[\p{P}\p{S}\s]+|$)"
_PLEASANTRIES = rf"^(?:(?:{'|'.join(_PLEASANT_CLAUSES)}){_END})+$"
_LONGEST_PLEASANTRY = 100  # characters

_ASKS_FOR_WORDS = (
    r"翻译|译[成为]|[中英日法德韩俄]文|[汉英日法德韩俄]语|怎么[说讲回]|什么意思|造句|例句|台词|"
    r"(?:写|怎[么样])[^，。！？\n]{0,12}(?:祝福|问候|告别|拒|道歉|致歉)|"
    rf"{_WORD}translat|{_WORD}mean{_WORD}|{_WORD}(?:do|to|would) (?:\w+ )?say{_WORD}"
)
_OF_ITSELF = rf"翻译|语言模型|人工智[能慧]|{_WORD}translat|language model|{_WORD}ai{_WORD}"


def refuses(prompt: pl.Expr, response: pl.Expr) -> pl.Expr:
    """Return whether the response refuses, disclaims or asks for what the prompt lacks, and helps with little else."""
    refusal = response.map_batches(_are_refusals, return_dtype=pl.Boolean, is_elementwise=True)
    return refusal & ~_asks_for_words(prompt, response)


def is_pleasantry(prompt: pl.Expr, response: pl.Expr) -> pl.Expr:
    """Return whether the response answers thanks or a farewell, or consists of pleasantries only."""
    text = _fold(pl.when(response.str.len_chars() <= _LONGEST_PLEASANTRY).then(response))
    pleasantry = text.str.contains(_PLEASANT_REPLY) | text.str.contains(_PLEASANTRIES)
    return pleasantry.fill_null(False) & ~_asks_for_words(prompt, response)


def _are_refusals(responses: pl.Series) -> pl.Series:
    """Return which responses refuse.

    Expressions would clean the texts again for each pattern, and a pattern of all patterns is ten times as slow.
    """
    short = pl.when(pl.col("response").str.len_bytes() <= _LONGEST_REFUSAL).then("response")
    texts = responses.to_frame("response").select(text=_fold(short))
    own = texts.select(own=pl.col("text").str.replace_all(_NOT_OWN, ""))["own"]
    # English after Chinese is not the speaker's own: 可以译成 I'm sorry, I can't help you.
    english = own.str.extract(r"^([^\p{Han}]*)").str.slice(0, 2 * _HEAD)
    matches = [own.str.slice(0, _HEAD).str.contains(pattern) for pattern in _CHINESE_REFUSALS]
    matches += [english.str.contains(pattern) for pattern in _ENGLISH_REFUSALS]
    rest = pl.when(pl.any_horizontal(matches)).then("text").str.replace_all(_TURN, "。$1")
    helped = rest.str.replace_all(_ABOUT_SPEAKER, "").str.replace_all(r"[\p{P}\n]+", "").str.len_bytes()
    return texts.select((helped <= _MOST_HELP).fill_null(False)).to_series()


def _asks_for_words(prompt: pl.Expr, response: pl.Expr) -> pl.Expr:
    """Return whether the last line of the prompt asks for words, such as a translation, which the response may be."""
    asks = _fold(prompt.str.split("\n").list.last()).str.contains(_ASKS_FOR_WORDS)
    return asks & ~_fold(response).str.contains(_OF_ITSELF)


def _fold(text: pl.Expr) -> pl.Expr:
    """Return the text in lower case, with straight apostrophes and the characters of the patterns Simplified."""
    return text.str.replace_many([*_TRADITIONAL, "’"], [*_SIMPLIFIED, "'"]).str.to_lowercase()
