"""The pages."""

from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path("", views.home, name="home"),
    path("room/<str:slug>/", views.room, name="room"),
    path("admin/", admin.site.urls),
]
