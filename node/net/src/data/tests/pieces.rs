//! Pieces: bytes, order, buffers, pressure.

use super::*;
use shoal_engine::io::DropReason;

const MIB: usize = 1024 * 1024;
const FRAME: usize = protocol::PAYLOAD_BYTES_MAX;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_byte_for_byte() {
    let (mut one, mut two) = pair(node(2).await, node(3).await).await;
    // The last one is shorter, as a blob's last piece is.
    let len = |piece: u32| if piece == 16 { 12_345 } else { 4 * MIB };
    for piece in 0..=16 {
        one.handle.expect(two.peer, 7, blob(), piece, len(piece) as u32);
        let bytes = piece_bytes(piece, len(piece));
        let source = match piece % 2 {
            0 => PieceSource::Bytes(bytes),
            _ => PieceSource::read(move || async move { Ok(bytes) }),
        };
        two.handle.send_piece(one.peer, 7, piece, source).unwrap();
    }
    for wanted in 0..=16 {
        let mut progress = 0;
        let (channel, piece, digest, buffer) = one
            .until(|event| match event {
                DataEvent::PieceProgress { piece, bytes, .. } => {
                    assert_eq!(piece, wanted);
                    progress += bytes;
                    None
                }
                DataEvent::PieceArrived { channel, piece, digest, buffer, .. } => {
                    Some((channel, piece, digest, buffer))
                }
                _ => None,
            })
            .await;
        assert_eq!((channel, piece, digest), (7, wanted, blob()));
        assert_eq!(progress as usize, len(piece));
        assert!(*buffer == *piece_bytes(piece, len(piece)), "piece {piece} has other bytes");
    }
    for wanted in 0..=16 {
        let sent = two
            .until(|event| match event {
                DataEvent::PieceSent { to_channel, piece, bytes, .. } => Some((to_channel, piece, bytes)),
                _ => None,
            })
            .await;
        assert_eq!(sent, (7, wanted, len(wanted) as u32));
    }
    assert_eq!(one.handle.buffer_bytes_in_use(), 0);
    let total = (64 * MIB + 12_345) as u64;
    assert_eq!((one.handle.stats().payload_bytes_in.get(), one.handle.stats().pieces_in.get()), (total, 17));
    assert_eq!(
        (two.handle.stats().payload_bytes_out.get(), two.handle.stats().pieces_out.get()),
        (total, 17)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_message_overtakes_queued_pieces() {
    // Nobody takes the receiver's events, so it stops reading, and what the sender has not written waits there.
    let one = node_with(2, |config| config.events_max = 1).await;
    let (mut one, two) = pair(one, node(3).await).await;
    for piece in 0..16 {
        one.handle.expect(two.peer, 7, blob(), piece, 4 * MIB as u32);
        let bytes = piece_bytes(piece, 4 * MIB);
        two.handle.send_piece(one.peer, 7, piece, PieceSource::Bytes(bytes)).unwrap();
    }
    one.until(|event| matches!(event, DataEvent::PieceProgress { .. }).then_some(())).await;
    two.handle.send(one.peer, leave(5)).unwrap();
    let mut arrived = 0;
    let message = one
        .until(|event| match event {
            DataEvent::PieceArrived { .. } => {
                arrived += 1;
                None
            }
            DataEvent::Message { message, .. } => Some(message),
            _ => None,
        })
        .await;
    assert_eq!(message, leave(5));
    // What the kernel's buffers hold goes first; they do not hold half of it.
    assert!(arrived < 8, "{arrived} pieces of 16 came first");
    for _ in arrived..16 {
        one.until(|event| matches!(event, DataEvent::PieceArrived { .. }).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_connection_in_mid_piece_frees_its_buffers() {
    let mut one = node(2).await;
    for by_us in [true, false] {
        let mut raw = Raw::connected(3, &mut one).await;
        let peer = keypair(3).peer_id();
        // A call without an answer keeps the link, but not its buffers.
        raw.bytes(&encode_with_subhead(Kind::Call, [1, 0, 0], 0)).await;
        let (_, answer) = one.until_call().await;
        one.handle.expect(peer, 7, blob(), 0, MIB as u32);
        raw.payload(7, 0, 0, &piece_bytes(0, FRAME)).await;
        one.until(|event| matches!(event, DataEvent::PieceProgress { .. }).then_some(())).await;
        assert_eq!(one.handle.buffer_bytes_in_use(), MIB);
        if by_us {
            one.handle.disconnect(peer, DropReason::Stalled);
            assert_eq!(one.until_disconnected().await, DisconnectReason::Dropped(DropReason::Stalled));
        } else {
            drop(raw);
            assert!(matches!(one.until_disconnected().await, DisconnectReason::Lost(_)));
        }
        assert_eq!(one.handle.buffer_bytes_in_use(), 0);
        answer.answer(bytes::Bytes::new());
    }
}

#[tokio::test]
async fn payload_of_a_request_taken_back_is_passed_over_and_the_request_may_be_renewed() {
    let mut one = node(2).await;
    let mut raw = Raw::connected(3, &mut one).await;
    let peer = keypair(3).peer_id();
    let bytes = piece_bytes(9, 2 * FRAME);
    let (first, second) = bytes.split_at(FRAME);
    one.handle.expect(peer, 7, blob(), 9, bytes.len() as u32);
    raw.payload(7, 9, 0, first).await;
    one.until(|event| matches!(event, DataEvent::PieceProgress { .. }).then_some(())).await;
    one.handle.unexpect(peer, 7, 9);
    eventually("the buffer is free", || one.handle.buffer_bytes_in_use() == 0).await;
    // Renewed while the rest of the old sending is under way.
    one.handle.expect(peer, 7, blob(), 9, bytes.len() as u32);
    raw.payload(7, 9, FRAME as u32, second).await;
    raw.payload(7, 9, 0, first).await;
    raw.payload(7, 9, FRAME as u32, second).await;
    let buffer = one
        .until(|event| match event {
            DataEvent::PieceArrived { buffer, .. } => Some(buffer),
            _ => None,
        })
        .await;
    assert!(*buffer == *bytes);
    assert_eq!(one.handle.stats().payload_bytes_discarded.get(), FRAME as u64);
    // It is done now: more of it was never asked for.
    raw.payload(7, 8, 0, first).await;
    let reason = one.until_disconnected().await;
    let refused = protocol::ProtocolError::NotRequested { channel: 7, piece: 8 };
    assert_eq!(reason, DisconnectReason::Protocol(refused));
    assert_eq!(one.handle.stats().protocol_errors.get(), 1);
    assert_eq!(raw.read().await, Some(Frame::Bye(protocol::ByeReason::Dropped(DropReason::Protocol))));
}

#[tokio::test]
async fn an_exhausted_pool_holds_back_the_sender_until_a_buffer_is_free() {
    let one = node_with(2, |config| config.buffer_bytes_max = 2 * FRAME).await;
    let (mut one, two) = pair(one, node(3).await).await;
    for piece in 0..8 {
        one.handle.expect(two.peer, 7, blob(), piece, FRAME as u32);
        let bytes = piece_bytes(piece, FRAME);
        two.handle.send_piece(one.peer, 7, piece, PieceSource::Bytes(bytes)).unwrap();
    }
    let mut held = vec![];
    for wanted in 0..8 {
        if held.len() == 2 {
            let waits = one.handle.stats();
            eventually("the reader waits", || waits.pool_waits.get() == u64::from(wanted) - 1).await;
            assert_eq!(waits.pieces_in.get(), u64::from(wanted));
            assert_eq!(one.handle.buffer_bytes_in_use(), 2 * FRAME);
            held.remove(0);
        }
        let (piece, buffer) = one
            .until(|event| match event {
                DataEvent::PieceArrived { piece, buffer, .. } => Some((piece, buffer)),
                _ => None,
            })
            .await;
        assert_eq!(piece, wanted);
        assert!(*buffer == *piece_bytes(piece, FRAME));
        held.push(buffer);
    }
    drop(held);
    assert_eq!(one.handle.buffer_bytes_in_use(), 0);
}

#[tokio::test]
async fn taking_a_request_back_ends_its_wait_for_a_buffer() {
    let one = node_with(2, |config| config.buffer_bytes_max = FRAME).await;
    let (mut one, two) = pair(one, node(3).await).await;
    for piece in 0..2 {
        one.handle.expect(two.peer, 7, blob(), piece, FRAME as u32);
        let bytes = piece_bytes(piece, FRAME);
        two.handle.send_piece(one.peer, 7, piece, PieceSource::Bytes(bytes)).unwrap();
    }
    let held = one
        .until(|event| match event {
            DataEvent::PieceArrived { buffer, .. } => Some(buffer),
            _ => None,
        })
        .await;
    eventually("the reader waits", || one.handle.stats().pool_waits.get() == 1).await;
    one.handle.unexpect(two.peer, 7, 1);
    two.handle.send(one.peer, leave(1)).unwrap();
    assert_eq!(one.until_message().await, leave(1));
    drop(held);
}

#[tokio::test]
async fn what_cannot_be_sent_or_is_cancelled_is_reported_with_zero_bytes() {
    let two = node_with(3, |config| config.piece_queue_max = 2).await;
    let (one, mut two) = pair(node(2).await, two).await;
    let failing = PieceSource::read(|| async { Err(std::io::Error::other("the disk is gone")) });
    two.handle.send_piece(one.peer, 7, 0, failing).unwrap();
    let sent = |event| match event {
        DataEvent::PieceSent { piece, bytes, .. } => Some((piece, bytes)),
        _ => None,
    };
    assert_eq!(two.until(sent).await, (0, 0));
    // One that does not come to its end, and behind it the queue.
    let (hold, held) = tokio::sync::oneshot::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let slow = PieceSource::read(move || async move {
        let _ = begun.send(());
        let _ = held.await;
        Ok(bytes::Bytes::from_static(b"late"))
    });
    two.handle.send_piece(one.peer, 7, 1, slow).unwrap();
    begins.await.unwrap();
    one.handle.expect(two.peer, 7, blob(), 1, 4);
    let more = || PieceSource::Bytes(piece_bytes(0, 4));
    two.handle.send_piece(one.peer, 7, 2, more()).unwrap();
    two.handle.send_piece(one.peer, 7, 3, more()).unwrap();
    assert_eq!(two.handle.send_piece(one.peer, 7, 4, more()), Err(SendError::Full));
    two.handle.cancel_send(one.peer, 7, 2);
    two.handle.cancel_send(one.peer, 7, 3);
    assert_eq!(two.until(sent).await, (2, 0));
    assert_eq!(two.until(sent).await, (3, 0));
    hold.send(()).unwrap();
    assert_eq!(two.until(sent).await, (1, 4));
}
