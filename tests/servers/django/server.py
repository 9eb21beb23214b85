"""The second authorization server of the tests: django-oauth-toolkit as it is published, with a database of its own.

Called with a folder to work in. Prints one line, {"port": PORT}, when it listens on 127.0.0.1, and ends when its standard
input does. The environment says the rest: ISSUER is what the world knows it as, and CLIENTS what is registered:
[{"client_id", "client_secret", "device", "redirect_uri"}, ..].

  POST /test/age   {"token": "..", "seconds": N}: this refresh token was spent or revoked N seconds earlier
"""

import hashlib
import json
import logging
import os
import secrets
import sys
import threading
from datetime import timedelta
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path, reverse_lazy
from django.views.decorators.csrf import csrf_exempt

ISSUER = os.environ["ISSUER"]
PAGE = '<form method="post">{% csrf_token %}{{ form }}<input type="submit"></form>'

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    # Writers wait for one another instead of failing.
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(sys.argv[1]) / "django.db",
            "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "oauth2_provider",
    ],
    LOGIN_URL=reverse_lazy("login"),
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    # The slow one is for passwords of people.
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(),
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "context_processors": ["django.template.context_processors.request"],
                "loaders": [
                    ("django.template.loaders.locmem.Loader", {"registration/login.html": PAGE}),
                    "django.template.loaders.app_directories.Loader",
                ],
            },
        }
    ],
    USE_TZ=True,
    OAUTH2_PROVIDER={
        "ACCESS_TOKEN_EXPIRE_SECONDS": 600,
        "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
        "OAUTH_DEVICE_VERIFICATION_URI": f"{ISSUER}/device/",
        "OAUTH_DEVICE_VERIFICATION_URI_COMPLETE": lambda code: f"{ISSUER}/device/?user_code={code}",
        "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": 30,
        "REFRESH_TOKEN_REUSE_PROTECTION": True,
        "SCOPES": {"read": "Read", "write": "Write"},
    },
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.contrib.auth.views import LoginView  # noqa: E402
from django.db.models import F  # noqa: E402
from oauth2_provider.models import Application, RefreshToken  # noqa: E402


@csrf_exempt
def age(request):
    asked = json.loads(request.body)
    checksum = hashlib.sha256(asked["token"].encode()).hexdigest()
    spent = RefreshToken.objects.filter(token_checksum=checksum).exclude(revoked=None)
    aged = spent.update(revoked=F("revoked") - timedelta(seconds=asked["seconds"]))
    return HttpResponse(status=200 if aged else 404)


urlpatterns = [
    path("login/", LoginView.as_view(), name="login"),
    path("test/age", age),
    path("", include("oauth2_provider.urls", namespace="oauth2_provider")),
]


def main():
    logging.disable(logging.WARNING)
    call_command("migrate", verbosity=0)
    User.objects.create_user("someone", password="canary-pw-someone")
    for client in json.loads(os.environ["CLIENTS"]):
        secret = client["client_secret"]
        Application.objects.create(
            client_id=client["client_id"],
            client_secret=secret or "",
            client_type=Application.CLIENT_CONFIDENTIAL if secret else Application.CLIENT_PUBLIC,
            authorization_grant_type=(
                Application.GRANT_DEVICE_CODE if client["device"] else Application.GRANT_AUTHORIZATION_CODE
            ),
            redirect_uris=client["redirect_uri"],
        )
    server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(get_wsgi_application())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_port}), flush=True)
    sys.stdin.read()


main()
