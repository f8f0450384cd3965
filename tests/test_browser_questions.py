"""What a person wants to know, from the overview, in at most two actions: by mouse, and by keyboard alone."""

import csv
import io

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.seats import Seat

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]


class Hands:
    """What a person does at a page; each thing done counts."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.actions = 0

    def click(self, name: str, role: str = "link") -> None:
        self.actions += 1
        self._page.get_by_role(role, name=name).first.click()  # type: ignore[arg-type]

    def point(self, place: Locator) -> None:
        self.actions += 1
        place.hover()

    def click_on(self, place: Locator) -> None:
        self.actions += 1
        place.click()

    def press(self, key: str) -> None:
        self.actions += 1
        self._page.keyboard.press(key)

    def write(self, key: str, text: str) -> None:
        """Open a box by its key, write, Enter: two actions."""
        self.actions += 2
        self._page.keyboard.press(key)
        self._page.keyboard.type(text)
        self._page.wait_for_timeout(400)
        self._page.keyboard.press("Enter")


@pytest.fixture
def page(calm_seat: Seat) -> Page:
    page = calm_seat.open("/")
    expect(page.locator("#facets summary").first).to_be_visible()  # the scripts have drawn
    return page


@pytest.fixture
def hands(page: Page) -> Hands:
    return Hands(page)


WITH = pytest.mark.parametrize("means", ["mouse", "keyboard"])


@WITH
def test_which_gpu_is_free(page: Page, hands: Hands, means: str) -> None:
    if means == "mouse":
        hands.click("free", "link")
    else:
        hands.press("f")
    expect(page.locator("#understood")).to_have_text("state:free")
    expect(page.locator("[data-key=gpu01]")).to_have_count(0)
    free = page.locator(".gpu[data-state=free]:not([data-off])")
    assert free.count() == int(page.locator("#legend [data-state=free] b").inner_text())
    assert hands.actions <= 2


@WITH
def test_who_uses_gpu02_gpu_4(page: Page, hands: Hands, means: str) -> None:
    cell = page.locator("[data-key=gpu02] .gpu").nth(4)
    if means == "mouse":
        hands.point(cell)
    else:
        hands.write("/", "gpu02")
        expect(page.locator("#hosts tr")).to_have_count(1)
    expect(cell).to_contain_text("carol")
    expect(cell).to_have_attribute("title", "gpu02 GPU 4, held, carol, 15 of 80 GiB, busy 0 % for 3 h")
    assert hands.actions <= 2


@WITH
def test_why_is_that_one_held(page: Page, hands: Hands, means: str) -> None:
    if means == "mouse":
        hands.click_on(page.locator("[data-key=gpu02] .gpu").nth(4))
    else:
        hands.write("Control+k", "gpu02")
    page.wait_for_url("**/host/gpu02*")
    row = page.locator("#gpu-4")
    expect(row).to_contain_text("held")
    expect(row).to_contain_text("memory, no work")
    assert hands.actions <= 2


@WITH
def test_what_broke(page: Page, hands: Hands, means: str) -> None:
    note = page.locator("#notes").get_by_role("link", name="gpu02 GPU 6")
    expect(note).to_contain_text("Xid 79")
    if means == "mouse":
        hands.click_on(note)
        page.wait_for_url("**/host/gpu02#gpu-6")
        expect(page.locator("#gpu-6")).to_contain_text("Xid 79")
    else:
        hands.press("x")
        expect(page.locator("#understood")).to_have_text("state:error,stale,down")
        expect(page.locator("#hosts")).to_contain_text("gpu05")
        expect(page.locator("[data-key=gpu02]")).to_contain_text("1 error")
    assert hands.actions <= 2


@WITH
def test_show_me_only_my_gpus(page: Page, hands: Hands, means: str) -> None:
    if means == "mouse":
        hands.click_on(page.locator("#facets summary", has_text="User"))
        hands.click_on(page.locator("#facets").get_by_role("link", name="carol"))
    else:
        hands.write("m", "carol")
    expect(page.locator("#understood")).to_have_text("user:carol")
    expect(page.locator("#hosts tr")).to_have_count(1)
    assert page.locator(".gpu:not([data-off])").count() == 2
    assert hands.actions <= 2


def test_who_i_am_is_asked_once(page: Page, hands: Hands) -> None:
    hands.write("m", "carol")
    expect(page.locator("#understood")).to_have_text("user:carol")
    page.keyboard.press("m")
    expect(page.locator("#scope")).to_be_hidden()
    page.keyboard.press("m")
    expect(page.locator("#understood")).to_have_text("user:carol")


@WITH
def test_give_me_this_as_csv(page: Page, hands: Hands, means: str) -> None:
    page.goto(page.url + "?q=state:held")
    with page.expect_download() as download:
        if means == "mouse":
            hands.click("CSV")
        else:
            hands.write("Control+k", "csv")
    head, columns, *rows = csv.reader(io.StringIO(download.value.path().read_text()))
    assert "q: state:held" in head
    assert [row[columns.index("host")] for row in rows] == ["dense-64", "gpu02"]
    assert hands.actions <= 2


# --------------------------------------------------------------------------------------- the address, and the keys


def test_back_and_forward_show_what_was_seen_before(page: Page) -> None:
    page.locator("#legend [data-state=held]").click()
    expect(page.locator("#hosts tr")).to_have_count(2)
    page.locator("th[data-sort=busy] a").click()
    expect(page.locator("th[data-sort=busy]")).to_have_attribute("aria-sort", "descending")
    page.go_back()
    expect(page.locator("th[aria-sort]")).to_have_count(0)
    page.go_back()
    expect(page.locator("#scope")).to_be_hidden()
    assert page.locator("#hosts tr").count() > 8
    page.go_forward()
    expect(page.locator("#q")).to_have_value("state:held")
    expect(page.locator("#hosts tr")).to_have_count(2)


def test_columns_are_chosen_and_a_link_shows_the_same(page: Page) -> None:
    heads = page.locator("table.hosts th[data-sort]:visible")
    expect(page.locator("th[data-sort=load]")).to_be_hidden()  # the page is too narrow
    page.get_by_text("Columns", exact=True).click()
    page.locator("#columns").get_by_role("link", name="CPU").click()
    expect(page.locator("th[data-sort=cpu]")).to_be_hidden()
    expect(page.locator("th[data-sort=load]")).to_be_visible()  # whoever chooses gets what is chosen
    page.locator("#columns").get_by_role("link", name="Users").click()
    shown = heads.all_inner_texts()
    assert shown == ["Host", "State", "Model", "GPUs", "Free", "Busy", "Mem", "Load", "Seen"]
    page.reload()
    assert heads.all_inner_texts() == shown
    page.go_back()
    page.go_back()
    expect(page.locator("th[data-sort=users]")).to_be_visible()
    expect(page.locator("th[data-sort=load]")).to_be_hidden()


def test_an_unknown_key_is_explained_and_hides_nothing(page: Page) -> None:
    before = page.locator("#hosts tr").count()
    page.locator("#q").fill("stat:free")
    expect(page.locator("#problems")).to_contain_text("did you mean state?")
    assert page.locator("#hosts tr").count() == before


def test_a_filter_that_nothing_fits_says_so_and_offers_ways_out(page: Page) -> None:
    page.locator("#q").fill("user:nobody state:held")
    expect(page.locator("#nothing")).to_be_visible()
    expect(page.locator("#sentence")).to_have_text("Nothing matches.")
    page.locator("#without").get_by_role("link", name="user:nobody").click()
    expect(page.locator("#understood")).to_have_text("state:held")
    expect(page.locator("[data-key=gpu02]")).to_be_visible()


def test_the_keys_are_listed_and_can_be_switched_off(page: Page) -> None:
    page.keyboard.press("?")
    listed = page.locator("dialog .keys")
    for key in ("/", "p", "d", "y", "f", "m", "x", "j", "k"):
        expect(listed.locator("dt", has_text=key).first).to_be_visible()
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    page.wait_for_timeout(300)
    assert "q=" not in page.url
    page.locator("#keys").click()
    page.locator("#keys-on").check()
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    expect(page.locator("#understood")).to_have_text("state:free")


def test_keys_walk_the_rows_and_open_one_and_its_neighbours(page: Page) -> None:
    names = [link.inner_text() for link in page.locator("#hosts th a").all()[:3]]
    said = "document.activeElement.textContent"
    page.keyboard.press("j")
    assert page.evaluate(said) == names[0]
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate(said) == names[1]
    page.goto(page.url + "host/gpu02")
    page.keyboard.press("]")
    page.wait_for_url("**/host/gpu03")
    page.keyboard.press("[")
    page.wait_for_url("**/host/gpu02")
    page.keyboard.press("g")
    page.keyboard.press("g")
    page.wait_for_url("**/gpu-data")


def test_keys_write_in_a_field_and_do_nothing_else(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("xpf")
    expect(page.locator("#q")).to_have_value("xpf")
    assert "paused" not in page.locator("#freshness").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    expect(page.locator("#freshness")).to_contain_text("paused")


def test_a_page_opened_by_its_address_stands_as_it_was_sent(calm_seat: Seat) -> None:
    page = calm_seat.open("/?q=user:bob&sort=-mem&group=model&view=map")
    expect(page.locator("#map canvas")).to_be_visible()
    assert page.locator("#map canvas").get_attribute("aria-label")
    expect(page.locator("#groups [data-group=model]")).to_have_attribute("aria-current", "true")
    page.locator("#map canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-words")).to_contain_text("GPU 1")
    page.get_by_role("link", name="Table").click()
    expect(page.locator("th[data-sort=mem]")).to_have_attribute("aria-sort", "descending")
