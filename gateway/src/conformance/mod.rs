//! The distribution specification v1.1 as checks against a running registry.
//!
//! Each case is a function named by the section it checks; all of them take a [`Registry`] and use a repository of
//! their own, so that they can run side by side and against a registry that is in use. They serve this crate's tests
//! (the gateway over the double) and the end-to-end tests (the gateway over a real mesh).

mod client;
mod discovery;
mod management;
mod pull;
mod push;
mod push_chunks;
mod push_manifests;

use futures::future::BoxFuture;

pub use client::{Registry, Reply};

/// What a case returns: `Err` says what was not as specified.
pub type Outcome = Result<(), String>;

/// One requirement of the specification, or a few that go together.
pub struct Case {
    /// The function's name.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(Registry) -> BoxFuture<'static, Outcome>,
}

/// Fails the case unless the condition holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!("{}: {}", stringify!($condition), format!($($text)+)));
        }
    };
}
pub(crate) use check;

/// The table of cases: calls `$callback! { module: case, case; … }`.
#[macro_export]
macro_rules! conformance_cases {
    ($callback:ident) => {
        $callback! {
            pull: spec_determining_support_base_is_200,
                spec_pull_manifest_by_tag,
                spec_pull_manifest_by_digest,
                spec_pull_manifest_content_type_is_what_was_pushed,
                spec_pull_manifest_unknown_is_404,
                spec_pull_manifest_of_unknown_repository_is_404,
                spec_pull_manifest_serves_ranges,
                spec_pull_manifest_answers_if_none_match,
                spec_pull_blob_serves_the_bytes,
                spec_pull_blob_unknown_is_404,
                spec_pull_blob_by_sha512,
                spec_pull_blob_serves_single_ranges,
                spec_pull_blob_serves_several_ranges,
                spec_pull_blob_unsatisfiable_range_is_416,
                spec_pull_blob_answers_if_none_match,
                spec_pull_blob_if_range_with_another_validator_is_whole,
                spec_check_blob_head_is_200_with_length_and_digest,
                spec_check_manifest_head_is_200_with_length_and_digest,
                spec_check_unknown_head_is_404,
                spec_errors_have_the_specified_body,
                spec_errors_name_invalid,
                spec_errors_digest_invalid,
                spec_errors_method_not_allowed;
            push: spec_push_blob_post_then_put,
                spec_push_blob_single_post,
                spec_push_blob_single_post_with_wrong_digest_is_400,
                spec_push_blob_put_with_wrong_digest_is_400,
                spec_push_blob_put_without_digest_is_400,
                spec_push_blob_percent_encoded_digest,
                spec_push_blob_empty,
                spec_push_blob_unknown_session_is_404,
                spec_push_blob_sessions_belong_to_their_repository,
                spec_mount_blob_is_201,
                spec_mount_blob_unknown_falls_back_to_202,
                spec_mount_blob_malformed_falls_back_to_202,
                spec_mount_blob_from_is_optional;
            push_chunks: spec_push_chunks_in_order,
                spec_push_chunks_first_begins_with_zero,
                spec_push_chunks_out_of_order_is_416,
                spec_push_chunks_status_after_416,
                spec_push_chunks_last_one_in_put,
                spec_push_chunks_put_out_of_order_is_416,
                spec_push_chunks_without_content_range,
                spec_push_chunks_length_must_match_range,
                spec_push_chunks_malformed_range_is_400,
                spec_push_chunks_status_of_new_session,
                spec_push_chunks_cancel;
            push_manifests: spec_push_manifest_by_tag_is_201,
                spec_push_manifest_by_digest_is_201,
                spec_push_manifest_by_wrong_digest_is_400,
                spec_push_manifest_keeps_the_exact_bytes,
                spec_push_manifest_moves_a_tag,
                spec_push_manifest_unknown_blob_is_manifest_blob_unknown,
                spec_push_manifest_with_no_layers,
                spec_push_manifest_ignores_content_type_parameters,
                spec_push_manifest_media_type_must_agree,
                spec_push_manifest_malformed_is_400,
                spec_push_manifest_schema_1_is_refused,
                spec_push_manifest_of_docker,
                spec_push_manifest_nested_index,
                spec_push_manifest_index_of_unknown_manifest,
                spec_push_manifest_foreign_layers,
                spec_push_manifest_of_4_megabytes,
                spec_push_manifest_too_large_is_413,
                spec_push_manifest_with_unknown_subject,
                spec_push_manifest_with_bad_tag_is_400;
            discovery: spec_list_tags_in_lexical_order,
                spec_list_tags_limited_by_n,
                spec_list_tags_n_zero_is_empty_without_link,
                spec_list_tags_after_last,
                spec_list_tags_link_leads_through_all,
                spec_list_tags_of_unknown_repository_is_404,
                spec_list_tags_of_repository_without_tags,
                spec_list_tags_malformed_parameters_are_400,
                spec_catalog_lists_repositories_in_pages,
                spec_referrers_of_unknown_subject_is_empty_index,
                spec_referrers_malformed_digest_is_400,
                spec_referrers_lists_manifests_with_subject,
                spec_referrers_artifact_type_falls_back_to_config,
                spec_referrers_index_without_artifact_type,
                spec_referrers_filtered_by_artifact_type;
            management: spec_delete_tag_is_202_then_404,
                spec_delete_manifest_takes_its_tags_along,
                spec_delete_unknown_manifest_is_404,
                spec_delete_in_unknown_repository_is_404,
                spec_delete_blob_is_202_then_404,
                spec_delete_unknown_blob_is_404,
                spec_delete_referrer_leaves_the_list;
        }
    };
}

macro_rules! table {
    ($($module:ident: $($case:ident),+;)+) => {
        /// All cases.
        pub fn cases() -> Vec<Case> {
            vec![$($(Case {
                name: stringify!($case),
                run: |registry| Box::pin($module::$case(registry)),
            }),+),+]
        }
    };
}
conformance_cases!(table);
