"""Shapes of chats and instructions, as SQL over their records; see record_shapes.py for what a SELECT returns.

Records of every shape become turns first, so that all of them find a pair's prompt in the same way. A turn is a struct:
`name` (what a reject calls it), `role`, `content`, `untaught` (why it is not to be learnt, or NULL), `calls` (whether
it is a tool call if it has no text) and `fault` (what is wrong with it, or NULL).
"""

from ...schemas.source_settings import Source
from .record_fields import (
    PLACE,
    begin,
    find_fault,
    find_mark,
    first_of,
    is_filled,
    items_of,
    name_type,
    parse_list,
    read_fields,
    refuse,
    text_of,
)

_SYSTEM = "'system', 'developer'"
_USER = """'user', 'human', 'prompter', 'client', 'customer', 'visitor', 'buyer', 'patient', '用户', '客户', '顾客',
    '访客', '买家', '患者'"""
_ASSISTANT = """'assistant', 'gpt', 'chatgpt', 'bot', 'chatbot', 'ai', 'llm', 'model', 'bing', 'bard', 'counselor',
    'agent', 'support', 'staff', 'seller', 'doctor', '助手', '助理', '机器人', '客服', '商家', '卖家', '医生'"""
_TOOL = """'function_call', 'function-call', 'tool_call', 'tool_calls', 'function', 'function_response', 'tool',
    'tool_response', 'tool_result', 'observation', 'ipython', 'environment'"""

_CHATS = ("conversations", "messages", "conversation")
_ROLE = ("role", "from", "sender", "speaker", "author")
_CONTENT = ("content", "value", "text", "parts", "message", "body")
_CALLS = ("tool_calls", "function_call")
_UNTAUGHT = ("weight", "loss", "loss_scale", "train", "training")
"""Keys of a reply that is not to be learnt: of OpenAI's fine-tuning API, ms-swift (two), Axolotl (two)."""

_ASKED = ("human", "user", "instruction", "prompt", "question", "query", "input")
_ANSWERED = ("assistant", "gpt", "bot", "output", "response", "answer")
"""Keys of an object that is an exchange, as in Firefly, ms-swift and XTuner: `{"human": …, "assistant": …}`."""

_PROMPTS = ("instruction", "prompt", "question", "query")
_INPUTS = ("input", "context")
_NO_INPUT = "'', '<noinput>', '<no input>', 'noinput', 'no input', 'nan'"
"""Words for no input: of Self-Instruct, those that AlpacaDataCleaned lists, and pandas' NaN as text."""
_OUTPUTS = ("chosen", "output", "response", "completion", "answer")
_PREFERENCE = ("prompt", "chosen", "completion", "response")
_REJECTED = ("rejected", "rejected_response", "rejected_messages")
_SYSTEMS = ("system", "system_prompt")
_UNWANTED = ("kto_tag", "label")
"""Keys of an example that people did not want: of LLaMA-Factory, TRL and ms-swift."""

_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_IDS = ("id", "conversation_id")


def select_instructions(source: Source) -> str:
    """Return a SELECT that makes a pair of each instruction, with its input and its history, and the output."""
    prompt, extra, output = first_of(*_PROMPTS), first_of(*_INPUTS), first_of(*_OUTPUTS)
    given = f"CASE WHEN lower(trim({text_of(extra)})) NOT IN ({_NO_INPUT}) THEN {text_of(extra)} END"
    joined = f"concat_ws(chr(10), nullif({text_of(prompt)}, ''), {given})"
    asked = f"CASE WHEN {prompt} IS NOT NULL OR {joined} <> '' THEN to_json({joined}) END"
    turns = f"""[
            {{'name': 'instruction', 'role': 'user', 'content': {asked}, 'untaught': NULL, 'calls': false,
              'fault': coalesce({find_fault("'instruction'", prompt)}, {find_fault("'input'", extra)})}},
            {{'name': 'output', 'role': 'assistant', 'content': {output}, 'untaught': NULL, 'calls': false,
              'fault': NULL}}]"""
    history = f"""nullif({_unwrap("history")}, '""')"""
    fields = read_fields(
        *_PROMPTS, *_INPUTS, *_OUTPUTS, "history", *_REJECTED, *_SYSTEMS, *_UNWANTED, *_UNTAUGHT, *_MEDIA
    )
    return f"""
WITH fields AS (
    SELECT {PLACE}, unnest(from_json(record, '{fields}')) FROM records
), said AS (
    SELECT *, NULL AS misfit, {_read_turns("history", items_of(history))} || {turns} AS said
    FROM fields
)
{_select_pairs(source, "{'system': system_text}", last_only=True)}
"""


def select_replies(source: Source) -> str:
    """Return a SELECT that makes a pair of each of the assistant's replies and the conversation before it.

    Reads `conversations`, `messages` or `conversation`, or else `prompt`: messages with role/content, from/value and
    the like, or exchanges. A `chosen` reply follows them, and a `rejected` one is the negative of the last reply.
    """
    fields = read_fields(*_CHATS, *_PREFERENCE, *_REJECTED, *_SYSTEMS, *_UNWANTED, *_UNTAUGHT, *_MEDIA, *_IDS)
    chosen = "CASE WHEN chat IS NULL THEN coalesce(chosen, completion, response) ELSE chosen END"
    messages = f"""CASE
            WHEN len(ending) = 0 THEN opening
            -- A preference that begins with the user's turn repeats the conversation.
            WHEN coalesce({_role_of("ending[1]")} NOT IN ({_ASSISTANT}), false) THEN ending
            WHEN {_role_of("opening[-1]")} IN ({_ASSISTANT}) THEN opening[:-2] || ending
            ELSE opening || ending END"""
    return f"""
WITH fields AS (
    SELECT *, {_unwrap(first_of(*_CHATS))} AS chat, {text_of(first_of(*_IDS))} AS chat_id
    FROM (SELECT {PLACE}, unnest(from_json(record, '{fields}')) FROM records)
), messages AS (
    SELECT *, {_list_messages("user", "coalesce(chat, prompt)")} AS opening,
        {_list_messages("assistant", chosen)} AS ending
    FROM fields
), said AS (
    SELECT *, CASE WHEN {begin("chat")} NOT IN ('[', '{{') THEN
            'expected a list of messages, found ' || {name_type("chat")} END AS misfit,
        {_read_turns("message", messages)} AS said
    FROM messages
)
{_select_pairs(source, "{'conversation': chat_id, 'turn': pair.turn, 'system': system_text}", last_only=False)}
"""


def _unwrap(field: str) -> str:
    """Return a list of messages as it is, taken out of a string of JSON or of a list around it."""
    return f"""CASE left(CAST({field} AS VARCHAR), 3) WHEN '[[{{' THEN
        CASE json_array_length({field}) WHEN 1 THEN {field} -> 0 ELSE {field} END
        ELSE {parse_list(field, "'OBJECT', 'ARRAY'")} END"""


def _list_messages(role: str, field: str) -> str:
    """Return the messages in a field as a list of JSON values; text is one message with this role."""
    return f"""CASE WHEN {_is_columns(field)} THEN {_read_columns(field)}
        WHEN {begin(field)} IN ('[', '{{') THEN {items_of(field)} WHEN {field} IS NULL THEN []
        ELSE [json_object('role', '{role}', 'content', {field})] END"""


def _is_columns(field: str) -> str:
    """Return whether messages are written by column, as by datasets' Sequence: `{"role": […], "content": […]}`."""
    return f"""CASE {begin(field)} WHEN '{{' THEN len(json_keys({field})) > 1
        AND list_has_all(['ARRAY'], list_transform(json_keys({field}), lambda key: json_type({field}, '/' || key)))
        ELSE false END"""


def _read_columns(field: str) -> str:
    """Return the messages that are written by column, as many as the longest column has."""
    keys = f"json_keys({field})"
    longest = f"list_max(list_transform({keys}, lambda key: json_array_length({field}, '/' || key)))"
    return f"""list_transform(range(CAST({longest} AS BIGINT)), lambda place: to_json(map_from_entries(list_transform(
        {keys}, lambda key: {{'key': key, 'value': json_extract({field}, '/' || key || '/' || place)}}))))"""


def _role_of(message: str) -> str:
    role = first_of(*(f"{message} ->> '{key}'" for key in _ROLE))
    return f"lower(trim({role}))"


def _name_message(message: str) -> str:
    """Return what is in a message's place, for a sentence, with the keys of an object."""
    keys = f"array_to_string(json_keys({message}), ', ')"
    return f"{name_type(message)} || CASE {begin(message)} WHEN '{{' THEN ' with ' || {keys} ELSE '' END"


def _find_media(row: str = "") -> str:
    """Return what is wrong with a record or message that has an image or a sound, else NULL."""
    fields = {key: f"{row}{key}" for key in _MEDIA}
    cases = " ".join(
        f"WHEN {is_filled(field)} THEN 'expected only texts, found {key}'" for key, field in fields.items()
    )
    return f"CASE WHEN {first_of(*fields.values())} IS NOT NULL THEN CASE {cases} END END"


def _read_turns(name: str, values: str) -> str:
    """Return the turns in a list of JSON values: messages, exchanges, or lists of a prompt and its response.

    Args:
        name: What a reject calls such a value.
    """
    keys = [*_ROLE, *_CONTENT, *_CALLS, "system", *_UNTAUGHT, *_MEDIA, *_ASKED, *_ANSWERED]
    role, content, asked, answered = (
        first_of(*(f'message."{key}"' for key in keys)) for keys in (_ROLE, _CONTENT, _ASKED, _ANSWERED)
    )
    calls = " OR ".join(is_filled(f"message.{key}") for key in _CALLS)
    only_calls = f"{begin(content)} = '[' AND {is_filled(content)}"  # or parts of images, which are a fault
    return f"""flatten(list_transform(
        list_transform({values}, lambda one: struct_insert(from_json(one, '{read_fields(*keys)}'), whole := one)),
        lambda message, number: list_transform(CASE
            WHEN message.whole IS NULL THEN []
            WHEN {role} IS NOT NULL THEN [{{'role': lower(trim({role} ->> '$')), 'content': {content}}}]
            WHEN coalesce({asked}, {answered}) IS NOT NULL THEN list_filter([
                {{'role': 'system', 'content': message.system}},
                {{'role': 'user', 'content': {asked}}},
                {{'role': 'assistant', 'content': {answered}}}
            ], lambda turn: turn.role <> 'system' OR turn.content IS NOT NULL)
            WHEN json_array_length(message.whole) = 2 AND json_type(message.whole, '$[0]') <> 'OBJECT' THEN [
                {{'role': 'user', 'content': message.whole -> 0}},
                {{'role': 'assistant', 'content': message.whole -> 1}}]
            ELSE [{{'role': NULL, 'content': message.whole}}] END,
        lambda turn: {{
            'name': '{name} ' || number, 'role': coalesce(turn.role, 'user'), 'content': turn.content,
            'untaught': {find_mark(False, *_UNTAUGHT, row="message.")}, 'calls': {calls} OR ({only_calls}),
            'fault': '{name} ' || number || ': ' || CASE
                WHEN turn.role IS NULL
                    THEN 'expected a message with role and content, found ' || {_name_message("message.whole")}
                WHEN turn.role NOT IN ({_SYSTEM}, {_USER}, {_ASSISTANT}, {_TOOL})
                    THEN 'expected a role such as user or assistant, found ' || turn.role
                ELSE {_find_media("message.")} END
        }})))"""


def _select_pairs(source: Source, meta: str, last_only: bool) -> str:
    """Return the end of a SELECT: the pairs of the table `said`, whose `misfit` says why a record has no turns.

    The prompt is the last `turns` exchanges up to the reply, or fewer if they exceed `max_prompt_chars` characters; the
    very last exchange is kept however long it is. An exchange begins where the user speaks after somebody else, so a
    prompt never begins with a reply. Tool calls and their results are left out; system prompts go to `meta`.

    Args:
        meta: A struct, which may refer to `pair.turn` and `system_text`.
        last_only: Whether only the last turn gives a pair.
    """
    turns, max_prompt_chars = source.options.turns, source.options.max_prompt_chars
    rejected = first_of(*(f"message.{key}" for key in _CONTENT), "message.whole")
    rejected_role = first_of(*(f'rejected_read[1]."{key}"' for key in _ROLE))
    return f""", heard AS (
    SELECT *, list_transform(said, lambda turn: {{
            'name': turn.name, 'role': turn.role, 'text': {text_of("turn.content")}, 'untaught': turn.untaught,
            'calls': turn.calls, 'fault': coalesce(turn.fault, {find_fault("turn.name", "turn.content")})}}) AS heard,
        list_transform({items_of(first_of(*_REJECTED))}, lambda one:
            struct_insert(from_json(one, '{read_fields(*_ROLE, *_CONTENT)}'), whole := one)
        ) AS rejected_read
    FROM said
), told AS (
    SELECT *, {find_mark(False, *_UNWANTED, *_UNTAUGHT)} AS unwanted, {_find_media()} AS media,
        list_transform(CASE
            -- A list of messages ends with the rejected reply.
            WHEN {rejected_role} IS NOT NULL THEN rejected_read[-1:]
            ELSE rejected_read END, lambda message: {{
                'text': {text_of(rejected)}, 'fault': {find_fault("'rejected'", rejected)}}}) AS negatives,
        list_filter(list_transform(heard, lambda turn: struct_update(turn, role :=
                CASE WHEN turn.calls AND turn.fault IS NULL AND coalesce(turn.text, '') = ''
                    THEN 'tool_call' ELSE turn.role END)),
            lambda turn: turn.role NOT IN ({_SYSTEM})) AS turns,
        list_aggregate([{", ".join(text_of(key) for key in _SYSTEMS)}] || list_transform(
            list_filter(heard, lambda turn: turn.role IN ({_SYSTEM})), lambda turn: turn.text),
            'string_agg', chr(10)) AS system_text
    FROM heard
), windows AS (
    -- For each turn: where the earlier exchanges begin that its prompt may include, and the number of characters before
    -- it, counting a line break after each turn.
    SELECT *,
        list_transform(range(1, len(turns) + 1), lambda i:
            list_filter(beginnings, lambda beginning: beginning < i)[-{turns}:]) AS begun,
        list_transform(range(1, len(turns) + 1), lambda i: coalesce(list_sum(lengths[:(i - 1)]), 0)) AS until
    FROM (SELECT *,
        list_transform(turns, lambda turn: CASE WHEN turn.role IN ({_TOOL}) OR turn.text IS NULL THEN 0
            ELSE length(turn.text) + 1 END) AS lengths,
        list_filter(range(1, len(turns) + 1), lambda i:
            turns[i].role NOT IN ({_ASSISTANT}, {_TOOL})
            AND (i = 1 OR turns[i - 1].role IN ({_ASSISTANT}, {_TOOL}))) AS beginnings
        FROM told)
), replies AS (
    SELECT *, list_transform(list_filter(range({"len(turns)" if last_only else "1"}, len(turns) + 1), lambda i:
            turns[i].role IN ({_ASSISTANT}) AND len(begun[i]) > 0), lambda i: {{
        'number': i,
        'prompt': list_filter(turns[list_filter(begun[i], lambda beginning:
            beginning = begun[i][-1] OR until[i] - until[beginning] - 1 <= {max_prompt_chars}
            )[1]:(i - 1)], lambda turn: turn.role NOT IN ({_TOOL})),
        'negatives': CASE WHEN i = len(turns) THEN negatives ELSE [] END
    }}) AS replies
    FROM windows
), pairs AS (
    SELECT *, unnest(CASE WHEN len(pairs) > 0 THEN pairs ELSE nothing END) AS pair FROM (SELECT *,
        list_transform(replies, lambda reply: {{
            'query': list_aggregate(list_transform(reply.prompt, lambda turn: turn.text), 'string_agg', chr(10)),
            'positive': turns[reply.number].text,
            'negatives': list_transform(reply.negatives, lambda one: one.text),
            'turn': reply.number,
            'excluded': coalesce(unwanted, turns[reply.number].untaught),
            'fault': coalesce(media, list_filter(
                list_transform(reply.prompt, lambda turn: coalesce(turn.fault,
                    CASE WHEN turn.text IS NULL AND len(reply.prompt) > 1 THEN turn.name || ': no text' END))
                || [turns[reply.number].fault]
                || list_transform(reply.negatives, lambda one: one.fault), lambda one: one IS NOT NULL)[1]),
            'misfit': NULL
        }}) AS pairs,
        list_filter([{{'query': NULL, 'positive': NULL, 'negatives': [], 'turn': NULL, 'excluded': NULL, 'fault': NULL,
            'misfit': coalesce(misfit, list_filter(
                list_transform(turns, lambda turn: turn.fault), lambda one: one IS NOT NULL)[1])
        }}], lambda one: one.misfit IS NOT NULL) AS nothing
        FROM replies)
)
SELECT {PLACE}, pair.query, pair.positive, pair.negatives,
    {meta} AS meta, {refuse(excluded_by_data="pair.excluded", field_type="pair.fault", no_pair="pair.misfit")}
FROM pairs"""
