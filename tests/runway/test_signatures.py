# SPDX-License-Identifier: Apache-2.0
"""A URL that is signed anew is the same address, and nothing else makes two addresses one."""

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_cometapi.runway import ImageToVideoRequest, VideoToVideoRequest
from prefect_cometapi.runway.redact import redact_payload
from prefect_cometapi.runway.signatures import MAX_LENGTH, unsigned, without_signature


def jwt(**claims: object) -> str:
    """Return an unsigned token in the form of a JSON Web Token."""
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzI1NiJ9.{payload}.c2lnbmF0dXJl"


S3 = "https://b.s3.amazonaws.com/cat.png"
V4 = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{0}%2F20261129%2Fus-east-1%2Fs3"
    "%2Faws4_request&X-Amz-Date=20261129T06{0}Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
    "&X-Amz-Security-Token=t{0}&X-Amz-Signature=s{0}"
)
SIGNED = {
    "aws-v4": f"{S3}?{V4}",
    "aws-v4-of-the-sdk": f"{S3}?X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&{V4}&x-id=GetObject",
    "cloudflare-r2": f"https://a.r2.cloudflarestorage.com/b/cat.png?{V4}",
    "aws-v2": f"{S3}?AWSAccessKeyId=AKIA{{0}}&Signature=s{{0}}%3D&Expires=17{{0}}",
    "google-v4": "https://storage.googleapis.com/b/cat.png?X-Goog-Algorithm=GOOG4-RSA-SHA256"
    "&X-Goog-Credential=c{0}&X-Goog-Date=2026{0}&X-Goog-Expires=900&X-Goog-SignedHeaders=host"
    "&X-Goog-Signature=s{0}",
    "google-v2": "https://storage.googleapis.com/b/cat?GoogleAccessId=a&Expires=1{0}&Signature={0}",
    "google-cdn": "https://cdn.example.com/cat?Expires=1{0}&KeyName=k{0}&Signature=s{0}",
    "azure-service": "https://a.blob.core.windows.net/c/cat.png?sv=2024-11-04&st={0}&se=2026{0}"
    "&sr=b&sp=r&sig=s{0}%3D",
    "azure-user": "https://a.blob.core.windows.net/c/cat?skoid=o{0}&sktid=t&skt={0}&ske={0}&sks=b"
    "&skv=2024-11-04&sv=2024-11-04&st={0}&se={0}&sr=b&sp=r&sig=s{0}",
    "azure-policy": "https://a.blob.core.windows.net/c/cat?sv=2024-11-04&si=p{0}&sr=c&sig=s{0}",
    "cloudfront": "https://d1.cloudfront.net/cat?Expires=1{0}&Signature=s{0}~&Key-Pair-Id=K{0}",
    "cloudfront-policy": "https://d1.cloudfront.net/cat?Policy=p{0}&Signature=s{0}&Key-Pair-Id=K",
    "aliyun-v1": "https://b.oss-cn-hangzhou.aliyuncs.com/cat?OSSAccessKeyId=a{0}&Expires=1{0}"
    "&Signature=s{0}&security-token=t{0}",
    "aliyun-v4": "https://b.oss-cn-hangzhou.aliyuncs.com/cat?x-oss-credential=c{0}&x-oss-date={0}"
    "&x-oss-expires=9&x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-signature=s{0}",
    "tencent": "https://b.cos.ap-guangzhou.myqcloud.com/cat?q-sign-algorithm=sha1&q-ak=a{0}"
    "&q-sign-time={0}&q-key-time={0}&q-header-list=host&q-url-param-list=&q-signature=s{0}",
    "huawei": "https://b.obs.cn.myhuaweicloud.com/cat?AccessKeyId=a{0}&Expires={0}&Signature={0}",
    "volcengine": "https://b.tos-cn-beijing.volces.com/cat?X-Tos-Algorithm=TOS4&X-Tos-Date={0}"
    "&X-Tos-Expires=9&X-Tos-SignedHeaders=host&X-Tos-Credential=c{0}&X-Tos-Signature=s{0}",
    "discord": "https://cdn.discordapp.com/attachments/1/2/cat.png?ex=6{0}&is=6{0}&hm=h{0}",
    "expires-signature": "https://cdn.example.com/pictures/42?expires=1{0}&signature=s{0}",
    "short-names": "https://cdn.example.com/42?e=1764000{0}5&sig=s{0}",
    "hex-time": "https://cdn.example.com/42?sign=s{0}&t=692a{0}af",
    "expires-token": "https://cdn.example.com/cat.mp4?token=t{0}&expires=1{0}",
    "token": "https://raw.githubusercontent.com/o/r/main/cat.png?token=t{0}",
    "escaped-path": "https://firebase.example.com/v0/b/b/o/pics%2Fcat.png?token=t{0}",
    "secure-link": "https://cdn.example.com/cat.jpg?md5=aaaaaaaaaaaaaaaaaaaa{0}&expires=1{0}",
    "akamai": "https://cdn.example.com/cat.jpg?hdnts=exp=1{0}~acl=/*~hmac=h{0}",
    "upper-case": "https://cdn.example.com/cat.JPG?EXPIRES=1{0}&TOKEN=t{0}",
}


@pytest.mark.parametrize("scheme", SIGNED)
def test_an_address_that_is_signed_anew_is_the_same(scheme):
    """No parameter of the signature is part of the address, in any order."""
    one, other = SIGNED[scheme].format("01"), SIGNED[scheme].format("23")
    address, _, query = other.partition("?")
    turned = f"{address}?{'&'.join(reversed(query.split('&')))}"
    assert one != other
    assert without_signature(one) == without_signature(other) == without_signature(turned)
    assert without_signature(one) == address
    assert redact_payload(one) == redact_payload(other) == redact_payload(redact_payload(one))


KEPT = st.sampled_from(
    [
        "versionId=3",
        "versionId=4",
        "generation=7",
        "snapshot=2026",
        "id=1",
        "id=2",
        "w=100",
        "v=2",
        "alt=media",
        "a",
        "x-oss-process=image/resize,w_100",
        "response-content-type=image/png",
    ]
)


@given(
    scheme=st.sampled_from(sorted(SIGNED)),
    one=st.lists(KEPT, max_size=3),
    other=st.lists(KEPT, max_size=3),
    folder=st.sampled_from(["", "a/"]),
)
def test_two_pictures_never_become_one(scheme, one, other, folder):
    """A version, a path and every parameter that is not of the signature distinguish pictures."""
    address, _, query = SIGNED[scheme].format("01").partition("?")
    host, _, path = address.removeprefix("https://").partition("/")

    def signed(kept: list[str], folder: str = "") -> str:
        return without_signature(f"https://{host}/{folder}{path}?{'&'.join([*kept, query])}")

    assert (signed(one) == signed(other)) == (one == other)
    assert (signed(one) == signed(one, folder)) == (folder == "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://example.com/download?token=a", "https://example.com/download?token=b"),
        ("https://example.com/?sig=a&expires=1", "https://example.com/?sig=b&expires=1"),
        ("https://example.com?signature=a", "https://example.com?signature=b"),
        ("https://example.com/cat.png?expires=1", "https://example.com/cat.png?expires=2"),
        ("https://example.com/cat.png?id=1&token=a", "https://example.com/cat.png?id=2&token=a"),
        ("https://example.com/v?t=12&sig=a", "https://example.com/v?t=13&sig=a"),
        ("https://example.com/cat.png?s=200&exp=1", "https://example.com/cat.png?s=300&exp=1"),
        ("https://example.com/cat.png?md5=a&v=1", "https://example.com/cat.png?md5=b&v=1"),
        ("https://example.com/cat.php?token=a", "https://example.com/cat.php?token=b"),
        ("https://example.com/cat.png?sv=1", "https://example.com/cat.png?sv=2"),
        ("https://example.com/cat?x-amz-date=1", "https://example.com/cat?x-amz-date=2"),
        ("https://[::1/cat.png?sig=a", "https://[::1/cat.png?sig=b"),
        (f"{S3}?{V4}&pad={'x' * MAX_LENGTH}", f"{S3}?{V4}&pad={'y' * MAX_LENGTH}"),
        (
            f"https://example.com/d?token={jwt(file='cat', exp=1)}",
            f"https://example.com/d?token={jwt(file='dog', exp=1)}",
        ),
        (
            f"https://example.com/d?token={jwt(exp=1)}",
            f"https://example.com/d?token={jwt(exp=2)}",
        ),
        ("https://example.com/d?token=eyJ.!.b", "https://example.com/d?token=eyJ.!.c"),
        ("https://example.com/d?token=eyJ.W10.b", "https://example.com/d?token=eyJ.W10.c"),
    ],
)
def test_what_may_choose_the_picture_is_kept(one, other):
    """A parameter that may be all that names the picture is part of its address."""
    assert without_signature(one) != without_signature(other)


def test_a_token_for_one_file_is_compared_by_its_lasting_claims():
    """Supabase and others put the name of the file into a token that expires."""
    one = f"https://x.supabase.co/sign?token={jwt(url='b/cat', iat=1, exp=2)}"
    other = f"https://x.supabase.co/sign?token={jwt(url='b/cat', iat=3, exp=4)}"
    assert without_signature(one) == without_signature(other)


def test_an_address_within_an_address_is_compared_without_its_signature():
    """A service that resizes pictures takes their address as a parameter."""

    def resized(which: str, size: int = 100) -> str:
        inner = SIGNED["aws-v4"].format(which)
        return without_signature(f"https://wsrv.nl/?w={size}&url={quote(inner, safe='')}")

    assert resized("01") == resized("02") != resized("01", 200)


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(text=texts | texts.map("https://a.example/b?{}".format))
def test_any_text_has_an_identity(text):
    """No text raises, and an identity is its own identity."""
    assume("=eyJ" not in text)
    assert without_signature(without_signature(text)) == without_signature(text)


def test_a_request_has_one_fingerprint_however_its_pictures_are_signed():
    """Every field and further fields are compared so, and the words of the prompt are not."""

    def video(which: str, prompt: str = "rain") -> str:
        return VideoToVideoRequest.model_validate(
            {
                "videoUri": SIGNED["aws-v4"].format(which),
                "model": "a-model-of-tomorrow",
                "promptText": prompt,
                "references": [{"uri": SIGNED["google-v4"].format(which)}],
                "keyframes": [{"uri": SIGNED["azure-user"].format(which), "at": 0.5}],
                "extra": {"lastFrame": {"uri": SIGNED["aws-v2"].format(which)}},
            }
        ).fingerprint()

    assert video("01") == video("02")
    signed = SIGNED["aws-v4"]
    assert video("01", signed.format("01")) != video("01", signed.format("02"))
    plain = ImageToVideoRequest(prompt_image=S3)
    assert (
        plain.fingerprint()
        == ImageToVideoRequest(prompt_image=SIGNED["aws-v4"].format("01")).fingerprint()
    )
    assert unsigned(["see https://a.example/cat.png?token=a", 7]) == [
        "see https://a.example/cat.png?token=a",
        7,
    ]
