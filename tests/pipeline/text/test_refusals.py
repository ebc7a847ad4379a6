"""Refusals and pleasantries: the speaker's own in all their forms, and texts that only speak of such words."""

import polars as pl
import pytest
from conan_embedding.pipeline.text.refusals import is_pleasantry, refuses

PROMPT = "怎样做番茄炒蛋？"

CHINESE_REFUSALS = [
    "作为一个人工智能语言模型，我没有情感和个人观点。",
    "作为AI助手，我不能提供医疗建议，请咨询医生。",
    "好的。作为一款由某公司训练的AI模型，我无法评价这道菜。",
    "我是一个语言模型，没有感情。",
    "我只是一个AI，不能替您做决定。",
    "抱歉，该请求违反了使用政策，无法处理。",
    "非常抱歉，我并不了解此事。",
    "不好意思，这个我不太清楚。",
    "我回答不了这个问题。",
    "我不会协助任何违法活动。",
    "我们无法提供此类信息。",
    "很抱歉，目前我没有即时资讯。",
    "截至我的知识更新时间，我没有关于此事的信息。",
    "请提供需要翻译的句子。",
    "请提供光谱表，我会将其转换为您要的格式。",
    "请问您能提供更多的信息吗？",
    "您似乎忘记附上文章了，请把文章发给我。",
    "对不起，我不能。",
    "对不起我不能做菜",
    "抱歉，我无法回答这个问题。",
    "抱歉，无法为您提供相关信息。",
    "您好，很抱歉，您没有提供文本。",
    "很抱歉，由于您未提供菜谱，我无法概括它。",
    "非常抱歉，我不能参与讨论政治话题。",
    "很遗憾，我无法满足您的要求。",
    "不好意思，我不太明白您的意思。",
    "抱歉，没有找到相关结果。",
    "对不起，我不能协助非法的行为。",
    "很抱歉，提供这样的做法是不合适的。",
    "无法回答您的问题。",
    "恕我无法回答。",
    "我无法回答这个问题。",
    "抱歉，这个问题我无法回答。",
    "我没有访问互联网的权限。",
    "我不具备实时查询天气的能力。",
    "我还没有学会如何回答这个问题。",
    "我的程序不允许我回答此类问题。",
    "抱歉，这个问题超出了我的能力范围。",
    "对不起，我帮不了你。",
    "我拒绝回答这个问题。",
    "这个我不太清楚，抱歉。",
    "抱歉哦，我还不能做这个呢。",
    "身为AI助手，我不能替您做决定。",
    "您的问题涉及敏感内容，因此我无法回答。",
    "尊敬的用户您好，让我们换个话题再聊聊吧。",
    "抱歉，我的知识库截止到2021年9月，无法回答之后的事情。",
    "不好意思，我没太听清，您能再说一遍吗？",
    "这个问题我还在学习中，暂时无法回答。",
    "小助手还在学习中，暂时回答不了您的问题哦。",
    "您问的问题暂时无法回答，请换个问题试试。",
    "我是文心一言，由百度研发的大语言模型，无法提供此类内容。",
    "您好，我是智能客服，暂时无法理解您的问题。",
    "抱歉，作为大模型，我没有实体，不能做饭。",
    "不知道。",
    "我不确定您在问什么，请提供更多背景。",
    "请重新上传图片。",
    "我没有看到任何图片，请重新上传一下。",
    "抱歉，您提供的链接无法打开。",
    "根据相关规定，此内容无法展示。",
    "我必须拒绝这个请求。",
    "抱歉，我不能提供帮助。如果您有其他问题，请告诉我，我很乐意为您解答。",
]

ENGLISH_REFUSALS = [
    "Sorry, I didn't understand your question. Could you please rephrase?",
    "Please provide the text you would like me to translate.",
    "Could you please provide more context?",
    "I don't know.",
    "As of my last update, I don't have information on that.",
    "Sorry! I cannot do it.",
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, but I can’t assist with that.",
    "Sorry, I can't help you with that.",
    "I cannot help with this request.",
    "I can't help with that.",
    "I apologize, but I cannot provide that information.",
    "My apologies, but I am unable to do that.",
    "Unfortunately, I am not able to access real-time data.",
    "I'm unable to provide medical advice.",
    "As an AI language model, I don't have personal opinions or feelings.",
    "As an AI, I cannot taste food.",
    "As a large language model trained by OpenAI, I do not have access to your order.",
    "I'm just an AI and can't browse the internet.",
    "I am a language model, so I cannot order food for you.",
    "I must respectfully decline this request.",
    "I won't help with that.",
    "I can't talk about that topic.",
    "I cannot and will not provide that.",
    "That would go against my guidelines.",
    "I'd rather not answer that.",
    "I'm not sure what you mean.",
    "I don't have access to real-time information.",
    "I do not feel comfortable answering that.",
    "Sorry, that's beyond my current capabilities.",
    "It would be inappropriate for me to answer.",
    "My training data only goes up to 2021, so I don't know.",
    "I have no idea.",
    "I didn't see any image attached. Could you upload it again?",
    "Can you please provide the text?",
    "Please upload the image.",
    "It is not possible for me to do that.",
]

CHINESE_PLEASANTRIES = [
    "当然可以！请问您需要什么帮助？",
    "不客气！",
    "不客气，很高兴能帮到您！",
    "不客气，孩子。我相信你能够做到的。",
    "不用谢，应该的。",
    "没事，举手之劳。",
    "没关系，随时可以找我聊天。",
    "再见，祝您生活愉快！",
    "很高兴为您服务。",
    "好的。",
    "好的，没问题！",
    "嗯嗯，好的呢～",
    "当然可以！",
    "希望对你有帮助！",
    "希望这些建议对您有所帮助。",
    "谢谢您的夸奖！",
    "感谢您的支持与理解，祝您生活愉快！",
    "好的，如果您还有其他问题，请随时告诉我。",
    "你好！有什么可以帮您的吗？",
    "您好！今天我能为您提供什么帮助？",
    "不客气😊",
    "谢谢老师，太感谢了！",
    "亲，在的哦，请稍等～",
    "早上好！",
    "没事没事",
    "有任何问题欢迎随时联系我们。",
]

ENGLISH_PLEASANTRIES = [
    "You're welcome!",
    "You’re welcome! Let me know if you have any other questions.",
    "No problem!",
    "Sure!",
    "OK",
    "I hope this helps!",
    "Glad I could help!",
    "Have a great day!",
    "Goodbye!",
    "Hello! How can I help you today?",
    "Thank you for your feedback!",
    "No worries! Take care!",
    "Understood, will do!",
    "Great question!",
    "Thanks a lot! See you later.",
]

ANSWERS = [
    "请提供您的身份证原件及复印件、一寸照片两张，并填写申请表。",
    "Please provide your passport and two photos at the front desk.",
    "你没有给出理由，论证不充分。建议补充两个例子，并说明数据的来源，再调整段落的顺序。",
    "患者没有提供既往病史，体检未见异常，建议随访。",
    "不好意思亲，加急需要另付十元，当天可以发出。",
    "Sorry, the shop was closed, so I bought the bread from the bakery next door and walked home along the river.",
    "再见的英语是 goodbye，也可以说 see you。",
    "再见，用英语说是 goodbye。",
    "不客气的英语是 You're welcome。",
    "抱歉，无法退货的商品包括贴身衣物、生鲜食品和定制商品。",
    "抱歉，無法退貨的商品包括貼身衣物和生鮮食品。",
    "对不起，您不能携带的物品包括打火机和充电宝。",
    "不能退货的商品有三类。",
    "抱歉，无法提供发票的商家不能申请退税。",
    "无法提供发票的商家应当补开收据。",
    "很抱歉，目前无法治愈这种病，只能控制症状。",
    "遗憾的是，这种病没有办法根治。",
    "抱歉，我之前说错了，应该先打蛋再炒番茄，最后放盐。",
    "不好意思，我不会再说了。",
    "“对不起，我不能帮你”可以译成 I'm sorry, I can't help you。",
    "他说：“抱歉，我无法参加。”然后就走了。",
    "小明说他不能参加，因为要上课。",
    "The phrase \"I'm sorry, but I can't assist with that\" is a refusal.",
    "I can't help but smile when I see tomatoes.",
    "If you can't help with the dishes, cook the eggs.",
    "You cannot open a file that does not exist.",
    "AI语言模型是根据大量文本训练的神经网络。",
    "机器学习作为人工智能的分支，没有统一的定义。",
    "作为一个AI工程师，我不能忽略数据的质量。",
    "作为一个AI聊天机器人，你没有人类的意识。",
    "我是一名人工智能工程师，没有做过菜。",
    "As an AI engineer, I can't ignore data quality.",
    "我不能确定您家的火力，但一般来说，鸡蛋用大火炒三十秒，番茄炒两分钟出汁，再合炒半分钟，加盐出锅即可。",
    "As an AI, I can't taste it, but here is how: beat three eggs with salt, fry them, add two tomatoes, then mix it.",
    "好的方案是使用缓存。",
    "好的，先把鸡蛋打散，再炒番茄。",
    "当然，番茄炒蛋先打蛋。",
    "谢谢你的方法是请客吃饭。",
    "希望对你有帮助：先打蛋，再炒番茄。",
    "很高兴认识你用英语说是 Nice to meet you。",
    "当然，我可以帮助你。你有任何饮食限制需要我考虑吗？",
    "Goodbye in Chinese is 再见.",
    "您没有提供授权码时，系统会使用默认值。",
    "没有网络的情况下，可以先缓存视频。",
    "我没看到图书馆里有这本书，可以去网上书店找。",
    "请上传身份证照片和申请表。",
    "请上传文件，然后点击提交。",
    "您提供的文件无法打开的原因是格式不支持。",
    "小明无法完成作业，因为他没有带书。",
    "机器人无法理解人类的感情。",
    "我还在学习英语，每天背二十个单词。",
    "他说的方言太重，无法理解。",
    "我必须拒绝他的求婚。",
    "该问题在数学上无法解答，因为方程没有实数解。",
    "不清楚的地方可以问老师。",
    "早上好，先打蛋。",
    "稍等片刻即可出锅",
    "I can't recommend this recipe enough.",
    "Please upload the file to the server using scp.",
    "Welcome to my kitchen: beat the eggs.",
    "Sure, beat the eggs first, then fry the tomatoes.",
]


def judge(*pairs: tuple[str, str]) -> dict[str, str | None]:
    """Return what each response is: a refusal, a pleasantry, or null."""
    prompt, response = pl.col("prompt"), pl.col("response")
    kind = pl.when(refuses(prompt, response)).then(pl.lit("refusal"))
    kind = kind.when(is_pleasantry(prompt, response)).then(pl.lit("pleasantry"))
    frame = pl.DataFrame(pairs, schema=["prompt", "response"], orient="row").select("response", kind=kind)
    return dict(frame.iter_rows())


@pytest.mark.parametrize("refusals", [CHINESE_REFUSALS, ENGLISH_REFUSALS], ids=["chinese", "english"])
def test_refusals(refusals: list[str]) -> None:
    assert judge(*((PROMPT, each) for each in refusals)) == dict.fromkeys(refusals, "refusal")


@pytest.mark.parametrize("pleasantries", [CHINESE_PLEASANTRIES, ENGLISH_PLEASANTRIES], ids=["chinese", "english"])
def test_pleasantries(pleasantries: list[str]) -> None:
    assert judge(*((PROMPT, each) for each in pleasantries)) == dict.fromkeys(pleasantries, "pleasantry")


def test_answers() -> None:
    assert judge(*((PROMPT, each) for each in ANSWERS)) == dict.fromkeys(ANSWERS)


def test_traditional_chinese_is_judged_like_simplified() -> None:
    opencc = pytest.importorskip("opencc", reason="the extra [zh] is not installed")
    for standard in ("s2t", "s2tw", "s2hk"):
        convert = opencc.OpenCC(standard).convert
        for texts, kind in ((CHINESE_REFUSALS, "refusal"), (CHINESE_PLEASANTRIES, "pleasantry"), (ANSWERS, None)):
            converted = [convert(text) for text in texts]
            assert judge(*((PROMPT, each) for each in converted)) == dict.fromkeys(converted, kind)
    taiwanese = "很抱歉，作為一個人工智慧，我無法提供這類資訊。"
    assert judge((PROMPT, taiwanese)) == {taiwanese: "refusal"}


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("“对不起，我不能去”用英语怎么说", "I'm sorry, I can't go."),
        ("把下面的话翻译成中文：I'm sorry, but I can't help you.", "对不起，我不能帮助你。"),
        ("不客气用英语怎么说", "You're welcome."),
        ("「再見」用英語怎麼說", "Goodbye."),
        ("Translate into Chinese: You're welcome!", "不客气！"),
        ("How do you say goodbye in Chinese?", "再见。"),
        ("用“抱歉”造句", "抱歉，我不能参加今晚的聚会。"),
        ("怎样婉拒同事的邀请？", "不好意思，我不能去。"),
        ("写一句生日祝福", "祝您生日快乐！"),
    ],
)
def test_words_that_the_prompt_asks_for(prompt: str, response: str) -> None:
    assert judge((prompt, response)) == {response: None}
    assert judge((f"{prompt}\n{PROMPT}", response)) != {response: None}  # only the last turn asks


def test_a_translation_may_be_refused() -> None:
    refusals = [
        "抱歉，我无法翻译这段内容。",
        "作为一个AI语言模型，我不能提供这类内容。",
        "I'm sorry, but I can't translate that.",
    ]
    assert judge(*(("请翻译这段骂人的话", each) for each in refusals)) == dict.fromkeys(refusals, "refusal")


def test_help_after_a_refusal_makes_it_an_answer() -> None:
    helpful = {
        f"{refusal}\n{'盐' * length}": None if length > 25 else "refusal"
        for refusal in CHINESE_REFUSALS
        if "我" in refusal and not refusal.startswith("好的。")
        for length in (0, 1, 24, 25, 26, 27, 60)
    }
    assert judge(*((PROMPT, each) for each in helpful)) == helpful


def test_a_quoted_refusal_is_not_the_speakers() -> None:
    quoted = [
        f"这句话是{quotes.format(refusal)}。"
        for refusal in CHINESE_REFUSALS + ENGLISH_REFUSALS
        for quotes in ("“{}”", "「{}」", '"{}"', "《{}》", "`{}`")
    ]
    assert judge(*((PROMPT, each) for each in quoted)) == dict.fromkeys(quoted)


def test_a_long_response_is_no_refusal() -> None:
    refusal = "抱歉，我无法回答。"
    longest = refusal + "我" * (250 - len(refusal))
    assert judge((PROMPT, longest), (PROMPT, longest + "我")) == {longest: "refusal", longest + "我": None}
