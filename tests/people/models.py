"""Each is the user model of one project."""

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, Group, Permission
from django.db import models

__all__ = ["Bare", "Heir", "HeirByProxy", "Human", "Member", "Neighbour", "Player", "Team", "Youngest"]


class Person(AbstractBaseUser):
    name = models.CharField(max_length=30, unique=True)
    USERNAME_FIELD = "name"
    objects = BaseUserManager()

    class Meta:
        abstract = True


class Bare(Person):
    """Has neither groups nor permissions."""


class Member(Person):
    """Is called otherwise than Django's users by what it has."""

    groups = models.ManyToManyField(Group, related_name="members")
    user_permissions = models.ManyToManyField(Permission, related_name="holders")

    class Meta:
        ordering = ("name",)


class Team(models.Model):
    id = models.UUIDField(primary_key=True)


class Player(Person):
    """Its groups are none of Django's."""

    groups = models.ManyToManyField(Team)


class Human(AbstractBaseUser):
    """A table of its own, that users share with others."""

    name = models.CharField(max_length=30, unique=True)
    USERNAME_FIELD = "name"
    objects = BaseUserManager()


class Heir(Human):
    """A child of another model."""


class HeirByProxy(Heir):
    class Meta:
        proxy = True


class Youngest(Heir):
    """A child of the user model, with a key that is not the user's."""

    number = models.AutoField(primary_key=True)
    heir = models.OneToOneField(Heir, models.CASCADE, parent_link=True)


class Neighbour(Human):
    """No user, but of the same table as one."""
