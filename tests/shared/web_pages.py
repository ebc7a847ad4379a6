"""Web pages: an article and the navigation, footer and so on around it."""

PARAGRAPHS = [
    "据记者三月五日报道，今年要扎实推进乡村振兴，稳住农业基本盘。记者在河北多地采访时看到，春耕备耕正在有序展开。",
    "“今年我们村的冬小麦长势不错。”村民说，去年秋天播种时墒情好，加上技术员多次下地指导，苗情比往年要好一成以上。",
    "与此同时，当地还推广了水肥一体化技术。这项技术每亩可节水四十立方米，节肥两成左右，受到农户的欢迎。",
]
TITLE = "河北春耕有序展开"
NAVIGATION = "".join(f"<li><a href='/{place}'>{place}频道</a></li>" for place in ("首页", "财经", "体育", "科技"))
NAVIGATION = f"<div class='nav'><ul>{NAVIGATION}</ul></div>"
FOOTER = "<div class='footer'><p>关于我们|广告服务</p><p>Copyright &copy; 1996-2024 版权所有 京ICP证000007号</p></div>"
BODY = "".join(f"<p>　　{paragraph}</p>" for paragraph in PARAGRAPHS)


def document(body: str, head: str = f"<title>{TITLE}_新闻中心_某某网</title>") -> str:
    return f"<!DOCTYPE html><html lang='zh-CN'><head>{head}</head><body>{NAVIGATION}{body}{FOOTER}</body></html>"


EMPTY = "<html><head><title>空</title></head><body><div></div></body></html>"
