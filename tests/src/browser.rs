//! A person's browser without scripts: follows links and redirects, keeps cookies, fills in forms as they stand.
//!
//! curl does the network part inside the person's machine. The forms are read from the page: hidden fields travel as
//! the page gave them, so that a test signs in only if a browser could.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::lab::host::Host;

/// A browser with its own cookies on one machine.
#[derive(Debug)]
pub struct Browser {
    host: Host,
    jar: String,
    authority: String,
}

/// A page as it came back after all redirects.
#[derive(Debug, Clone)]
pub struct Page {
    /// Where it was found in the end.
    pub url: String,
    /// The HTTP status.
    pub status: u16,
    /// The text.
    pub body: String,
    /// Where it leads, if it is a redirect that was not followed.
    pub redirect: Option<String>,
}

/// A form of a page.
#[derive(Debug, Clone)]
pub struct Form {
    /// The absolute URL to which it goes.
    pub action: String,
    /// `get` or `post`.
    pub method: String,
    /// The fields with the values that the page gave them.
    pub fields: BTreeMap<String, String>,
    /// The form's text, for finding it by its button.
    pub html: String,
}

impl Browser {
    /// Opens a browser that trusts `authority`, a PEM file on the machine, besides nobody.
    ///
    /// # Errors
    /// Fails when the machine cannot keep cookies.
    pub fn open(host: &Host, authority: &str) -> Result<Self> {
        let jar = host.sh("mktemp -p /run cookies.XXXXXX")?.trim().to_owned();
        Ok(Self { host: host.clone(), jar, authority: authority.to_owned() })
    }

    /// Goes to a URL.
    ///
    /// # Errors
    /// Fails when there is no answer; a status of 400 and above is an answer.
    pub fn get(&self, url: &str) -> Result<Page> {
        self.curl(&["--location".into()], url)
    }

    /// Sends a form with some of its fields filled in.
    ///
    /// # Errors
    /// Fails when there is no answer, or the form has no field of a name in `filled`.
    pub fn submit(&self, form: &Form, filled: &[(&str, &str)]) -> Result<Page> {
        let mut arguments = Self::filled_in(form, filled)?;
        arguments.push("--location".into());
        self.curl(&arguments, &form.action)
    }

    /// Sends a form and follows redirects up to the first that leads to `stop` or below; that one is not followed, and
    /// the page says only where it leads.
    ///
    /// # Errors
    /// As [`Browser::submit`], and when the redirects end elsewhere.
    pub fn submit_until(&self, form: &Form, filled: &[(&str, &str)], stop: &str) -> Result<Page> {
        let mut page = self.curl(&Self::filled_in(form, filled)?, &form.action)?;
        for _ in 0..12 {
            let next =
                page.redirect.clone().with_context(|| format!("{} ({}) leads nowhere", page.url, page.status))?;
            if next.starts_with(stop) {
                return Ok(Page { url: next, ..page });
            }
            page = self.curl(&[], &next)?;
        }
        anyhow::bail!("no redirect leads to {stop}")
    }

    /// Asks again while the answer is that there were too many attempts (429), as a person does: each time after a longer pause,
    /// since every try uses up what is allowed, and a page may need several requests.
    ///
    /// # Errors
    /// Fails as `ask` does, and when the answer stays the same for a minute.
    pub fn patiently(&self, ask: impl Fn() -> Result<Page>) -> Result<Page> {
        for seconds in [1, 2, 4, 8, 16, 32] {
            let page = ask()?;
            if page.status != 429 {
                return Ok(page);
            }
            std::thread::sleep(Duration::from_secs(seconds));
        }
        anyhow::bail!("the pages say for a minute that there were too many attempts")
    }

    fn filled_in(form: &Form, filled: &[(&str, &str)]) -> Result<Vec<String>> {
        let mut fields = form.fields.clone();
        for (name, value) in filled {
            ensure!(fields.contains_key(*name), "the form to {} has no field `{name}`: {:?}", form.action, form.fields);
            fields.insert((*name).to_owned(), (*value).to_owned());
        }
        let mut arguments: Vec<String> = Vec::new();
        if form.method == "get" {
            arguments.push("--get".into());
        } else {
            arguments.extend(["-H".into(), format!("Origin: {}", origin(&form.action)?)]);
        }
        for (name, value) in &fields {
            arguments.extend(["--data-urlencode".into(), format!("{name}={value}")]);
        }
        if fields.is_empty() && form.method == "post" {
            arguments.extend(["--data".into(), String::new()]);
        }
        Ok(arguments)
    }

    fn curl(&self, arguments: &[String], url: &str) -> Result<Page> {
        let output = self
            .host
            .command("curl")
            .args(["--silent", "--show-error", "--max-redirs", "12", "--max-time", "20", "--noproxy", "*"])
            .args(["--cookie", &self.jar, "--cookie-jar", &self.jar, "--cacert", &self.authority])
            .args(["--write-out", "\n%{http_code} %{url_effective} %{redirect_url}"])
            .args(arguments)
            .arg(url)
            .time_limit(Duration::from_secs(30))
            .run()?
            .ok()?;
        let (body, last) = output.rsplit_once('\n').context("curl says no status")?;
        let (status, rest) = last.split_once(' ').context("curl says no URL")?;
        let (url, redirect) = rest.split_once(' ').context("curl says no redirect")?;
        let redirect = Some(redirect.to_owned()).filter(|redirect| !redirect.is_empty());
        Ok(Page { url: url.to_owned(), status: status.parse()?, body: body.to_owned(), redirect })
    }
}

fn origin(url: &str) -> Result<String> {
    let (scheme, rest) = url.split_once("://").context("not an absolute URL")?;
    Ok(format!("{scheme}://{}", rest.split(['/', '?', '#']).next().unwrap_or(rest)))
}

impl Page {
    /// Returns the page's forms, in order.
    pub fn forms(&self) -> Vec<Form> {
        let mut forms = Vec::new();
        let mut rest = self.body.as_str();
        while let Some(start) = rest.find("<form") {
            let end = rest[start..].find("</form>").map_or(rest.len(), |end| start + end);
            forms.push(self.form_of(&rest[start..end]));
            rest = &rest[end..];
        }
        forms
    }

    /// Returns the first form whose text or action contains `text`.
    ///
    /// # Errors
    /// Fails with the page when there is none.
    pub fn form(&self, text: &str) -> Result<Form> {
        let found = self.forms().into_iter().find(|form| form.action.contains(text) || form.html.contains(text));
        found.with_context(|| format!("no form with {text:?} on {} ({})\n{}", self.url, self.status, self.body))
    }

    /// Returns the first link of the page whose address contains `text`.
    ///
    /// # Errors
    /// Fails with the page when there is none.
    pub fn link(&self, text: &str) -> Result<String> {
        let mut links = self.body.split("<a").filter_map(|tag| attribute(tag.split('>').next()?, "href"));
        let found = links.find(|link| link.contains(text));
        let link =
            found.with_context(|| format!("no link with {text:?} on {} ({})\n{}", self.url, self.status, self.body))?;
        Ok(self.absolute(&link))
    }

    /// Returns the page's text without tags.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut inside = false;
        for c in self.body.chars() {
            match c {
                '<' => inside = true,
                '>' => {
                    inside = false;
                    text.push(' ');
                }
                c if !inside => text.push(c),
                _tag => {}
            }
        }
        unescape(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn form_of(&self, html: &str) -> Form {
        let head = html.split('>').next().unwrap_or("");
        let action = attribute(head, "action").unwrap_or_default();
        let method = attribute(head, "method").unwrap_or_else(|| "get".into()).to_lowercase();
        let mut fields = BTreeMap::new();
        for tag in
            html.split('<').filter(|tag| ["input", "textarea", "select"].iter().any(|kind| tag.starts_with(kind)))
        {
            let tag = tag.split('>').next().unwrap_or("");
            let kind = attribute(tag, "type").unwrap_or_default();
            let unticked = matches!(kind.as_str(), "checkbox" | "radio") && !tag.contains("checked");
            if let Some(name) = attribute(tag, "name").filter(|_| kind != "submit" && !unticked) {
                fields.insert(name, attribute(tag, "value").unwrap_or_default());
            }
        }
        Form { action: self.absolute(&action), method, fields, html: html.to_owned() }
    }

    fn absolute(&self, reference: &str) -> String {
        let origin = origin(&self.url).unwrap_or_default();
        match reference {
            "" => self.url.clone(),
            absolute if absolute.contains("://") => absolute.to_owned(),
            rooted if rooted.starts_with('/') => format!("{origin}{rooted}"),
            relative => {
                let folder =
                    self.url.split(['?', '#']).next().and_then(|url| url.rsplit_once('/')).map_or("", |(f, _)| f);
                format!("{folder}/{relative}")
            }
        }
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let mut rest = tag;
    while let Some(at) = rest.find(name) {
        let before = rest[..at].chars().last();
        let after = &rest[at + name.len()..];
        if before.is_some_and(char::is_whitespace) && after.starts_with('=') {
            let quoted = &after[1..];
            let mark = quoted.chars().next().filter(|mark| matches!(mark, '"' | '\''))?;
            return quoted[1..].split(mark).next().map(unescape);
        }
        rest = after;
    }
    None
}

fn unescape(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&#x27;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_they_stand() {
        let body = r#"<p>Hi &amp; <b>you</b></p><form method="post" action="/join?x=1&amp;y=2"><input type="hidden" name="csrf" value="a&quot;b">
            <input name="code"><button>Confirm</button></form>"#;
        let page = Page { url: "https://ctl.lab:8443/a/b?c".into(), status: 200, body: body.into(), redirect: None };
        let form = page.form("Confirm").unwrap();
        assert_eq!(form.action, "https://ctl.lab:8443/join?x=1&y=2");
        assert_eq!(form.fields, BTreeMap::from([("code".into(), String::new()), ("csrf".into(), "a\"b".into())]));
        assert_eq!(page.text(), "Hi & you Confirm");
        assert_eq!(page.absolute("c"), "https://ctl.lab:8443/a/c");
        assert!(page.form("Refuse").is_err());
    }
}
