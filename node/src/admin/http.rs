//! `/livez`, `/readyz` and `/metrics`, on node and front alike. Machines read the status code; people add
//! `?verbose`. `/livez` says only that the process answers: losing the quorum must never make a supervisor restart
//! nodes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::shutdown::Scope;

/// Connections at once; monitoring needs a handful.
const CONNECTIONS_MAX: usize = 64;
/// A connection that is older than this is closed: a scrape takes milliseconds.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request's header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Is it ready, and every check in words.
    pub readiness: Arc<dyn Fn() -> (bool, String) + Send + Sync>,
    /// Brings gauges up to date before they are rendered.
    pub before_metrics: Arc<dyn Fn() + Send + Sync>,
}

/// Accepts until `accepting` ends; whoever is connected by then is answered once more, at most until `scope` ends.
pub fn serve(listener: TcpListener, pages: Pages, accepting: &Scope, scope: &Scope) {
    let (tasks, until) = (scope.clone(), accepting.clone());
    accepting.spawn_until_ended(async move {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (pages, until) = (pages.clone(), until.clone());
            tasks.spawn_until_ended(async move {
                let _permit = permit;
                let service = service_fn(move |request| {
                    let mut answer = answer(&pages, &request);
                    if until.is_ended() {
                        // Whoever asks on meets the process that accepts now.
                        let close = http::HeaderValue::from_static("close");
                        answer.headers_mut().insert(http::header::CONNECTION, close);
                    }
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                let connection = http.serve_connection(TokioIo::new(stream), service);
                // A client that goes away is its own business.
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            });
        }
    });
}

fn answer(pages: &Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return page(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    let verbose = request.uri().query().is_some_and(|query| query.split('&').any(|word| word.starts_with("verbose")));
    match request.uri().path() {
        "/livez" if verbose => page(StatusCode::OK, "[+]process ok\nlivez check passed\n".to_owned()),
        "/livez" => page(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => {
            let (ready, text) = (pages.readiness)();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            match (verbose, ready) {
                (true, _) | (_, false) => page(status, text),
                (false, true) => page(status, "ok\n".to_owned()),
            }
        }
        "/metrics" => {
            (pages.before_metrics)();
            page(StatusCode::OK, pages.metrics.render())
        }
        _ => page(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
