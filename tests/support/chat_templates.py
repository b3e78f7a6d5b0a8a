"""Chat templates in the manner of published models, and hostile ones. Written for these tests."""

# Falcon-7B-instruct: a system text in front, alternating roles, blank lines squeezed.
FALCON_INSTRUCT = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set preface = messages[0]['content'] %}{% else %}{% set turns = messages %}"
    "{% set preface = '' %}{% endif %}{% for turn in turns %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('the roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 %}{{ preface.strip() }}{% endif %}"
    "{{ '\\n\\n' + ('User' if turn['role'] == 'user' else 'Assistant') + ': ' }}"
    "{{ turn['content'].strip().replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)

# Falcon3: one line per turn, the end-of-text token behind an answer, tools in the first turn.
FALCON3 = """\
{%- if tools %}
<|system|>
You can call these functions:
{% for tool in tools %}{{ tool | tojson(indent=2) }}{% if not loop.last %},
{% endif %}{% endfor %}

Today is {{ strftime_now('%Y') | length }} digits long.
{% endif %}
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{% if not loop.last %}<|assistant|>
{{ message['content'] + eos_token }}
{% else %}<|assistant|>
{{ message['content'] }}
{% endif %}
{% else %}<|{{ message['role'] }}|>
{{ message['content'] }}
{% endif %}
{% if loop.last and add_generation_prompt %}<|assistant|>
{% endif %}
{% endfor %}"""

# Llama 3: headers, macros, namespaces, tool calls with their arguments as JSON.
HEADERS_AND_TOOLS = """\
{{- bos_token }}
{%- macro header(role) -%}<|start|>{{ role }}<|sep|>

{% endmacro -%}
{%- set state = namespace(calls=0) -%}
{%- if tools is defined and tools %}
    {{- header('system') }}
    {%- for tool in tools if tool.type == 'function' %}
        {{- tool.function.name ~ ': ' ~ tool.function | tojson }}
        {{- "\\n" }}
    {%- endfor %}
    {{- "<|end|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'skipped' %}{% continue %}{% endif %}
    {{- header(message.role) }}
    {%- if 'tool_calls' in message and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- set state.calls = state.calls + 1 %}
            {{- {'n': state.calls, 'name': call.function.name} | tojson }}
            {{- call.function.arguments.items() | list | length }}
            {{- call.function.arguments | tojson }}
        {%- endfor %}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
    {{- "<|end|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}
"""

# ChatML, as used in training: what the model says stands between generation tags.
CHATML_GENERATION = """\
{% for message in messages[::-1][::-1] %}
    {% if message.role == 'assistant' %}
<|im_start|>assistant
    {% generation %}
{{ message.content }}<|im_end|>
    {% endgeneration %}
    {% else %}
{{ '<|im_start|>' + message.role.title().lower() + '\n' + message.content + '<|im_end|>' }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

LIKE_PUBLISHED = {
    "falcon-instruct": FALCON_INSTRUCT,
    "falcon3": FALCON3,
    "headers-and-tools": HEADERS_AND_TOOLS,
    "chatml-generation": CHATML_GENERATION,
}

# What each must be answered with.
HOSTILE = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "more than 1",
    "{{ 10 ** (10 ** 10) }}": "more than 1 s",
    "{{ 'a' * 10 ** 9 }}": "too much memory",
    "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}": "more than 1000000 bytes",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}": "too deep",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "not allowed",
    "{{ messages.append }}{{ messages.append(1) }}": "not allowed",
    "{{ raise_exception.__globals__.keys() }}": "not allowed",
    "{{ '{0.__class__.__mro__}'.format(messages) }}": "not allowed",
    "{{ messages | attr('__class__') }}": "No filter named 'attr'",
    "{% set n = namespace(__class__=1) %}": "not allowed",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}": "not allowed",
    "{% include 'config.json' %}": "no loader",
    "{{ self.__init__.__globals__ }}": "not allowed",
    "{{ cycler.__init__.__globals__.os.system('true') }}": "not allowed",
    "{{ open('/etc/passwd').read() }}": "'open' is undefined",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{{ '\\ud800' }}": "half of a surrogate pair",
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages | tojson(indent=10 ** 9) }}": "too much memory",
}
